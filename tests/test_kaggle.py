"Forms of a sample submission, ids as it spells them, and advice that works when it is followed"
import json, os, re, shutil, sys, threading, time, warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest
from pandas.testing import assert_frame_equal
from pathlib import Path
from PIL import Image
from vision_ft.classify.kaggle import (asked_classes, check_submission, label_shares, read_competition, read_sample, spell_ids, submission,
                                       submit, write_submission)
from vision_ft.core import DataError, Preds, SettingsError, VisionFTError
from vision_ft.data.splits import group_counts, make_split, read_split, save_split, saved_split, split_rows

def image(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)

def plain(folder, **classes):
    "n images a class, in class folders"
    for c, (label, n) in enumerate(classes.items()):
        for i in range(n): image(folder/label/f'{i}.png', 1000*c+i)
    return folder

def kaggle(folder, sample='id,label\n1,cat\n2,dog\n3,\n', **classes):
    "The shape of a competition, with the test images 1.png, 2.png and 3.png"
    plain(folder/'train_images', **(classes or dict(cat=6, dog=6)))
    for i in (1, 2, 3): image(folder/'test_images'/f'{i}.png', 90000+i)
    (folder/'sample_submission.csv').write_text(sample)
    return folder

def train_csv(folder, text):
    "All images of the class folders directly in train_images, and train.csv"
    for f in sorted((folder/'train_images').glob('*/*')): f.rename(folder/'train_images'/f'{f.parent.name}{f.name}')
    for d in (folder/'train_images').iterdir():
        if d.is_dir(): d.rmdir()
    (folder/'train.csv').write_text(text)
    return folder

def rows(sep=',', **classes): return ''.join(f'{c}{i}.png{sep}{c}\n' for c, n in classes.items() for i in range(n))
CSV = 'id,label\n'+rows(cat=6, dog=6)
preds = Preds(['3', '1', '2'], ['cat', 'dog'], [[.75, .25], [.5, .5], [.125, .875]])

# --- the form of the answer

def text(csv): return Path(csv).read_text().splitlines()

@pytest.mark.parametrize('sample,wants', [
    ('id,label\n1,cat\n2,dog\n3,\n', ['id,label', '1,cat', '2,dog', '3,cat']),
    ('id,dog\n1,0.5\n2,0.5\n3,0\n', ['id,dog', '1,0.5', '2,0.875', '3,0.25']),
    ('id,dog,cat\n3,0,1\n2,0.5,0.5\n1,0.5,0.5\n', ['id,dog,cat', '3,0.25,0.75', '2,0.875,0.125', '1,0.5,0.5'])])
def test_answer_has_the_form_of_the_sample(tmp_path, sample, wants):
    comp = read_competition(kaggle(tmp_path, sample))
    assert text(write_submission(preds, tmp_path/'s.csv', comp.sample)) == wants
    asked = asked_classes(comp.sample, ['cat', 'dog'])
    assert repr(comp).endswith(['labels', 'probabilities of dog', 'probabilities of each class'][len(asked)])

def test_cells_that_may_be_labels_or_probabilities_get_a_word(tmp_path):
    csv = kaggle(tmp_path, 'id,label\n1,0\n2,0\n3,0\n', **{'0': 6, '1': 6})/'sample_submission.csv'
    with pytest.warns(UserWarning, match="all '0', so labels are written"): comp = read_competition(tmp_path)
    assert repr(comp).endswith('labels')
    replace(csv, ',0', ',0.5') # as advised
    assert repr(read_competition(tmp_path)).endswith('probabilities of 1')
    csv.write_text('id,label\n1,0\n2,1\n3,0\n')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert repr(read_competition(tmp_path)).endswith('labels')

@pytest.mark.parametrize('names', [('0', '1'), ('False', 'True'), ('0.0', '1.0'), ('false', 'TRUE')])
def test_one_probability_is_of_the_positive_class(names):
    sample = pd.DataFrame(dict(id=['1', '2', '3'], label='0.5'))
    assert asked_classes(sample, names) == [names[1]]
    p = Preds(preds.ids, names, preds.probs)
    assert submission(p, sample).label.tolist() == [.5, .875, .25]
    swapped = Preds(preds.ids, names[::-1], preds.probs[:, ::-1])
    assert submission(swapped, sample).label.tolist() == [.5, .875, .25]

def test_probabilities_survive_the_file(tmp_path):
    p = Preds([f'{i}.jpg' for i in range(200)], list('abcde'), np.random.default_rng(0).dirichlet(np.ones(5), 200))
    sample = pd.DataFrame(dict(id=p.ids[::-1], **dict.fromkeys('ecabd', '0.2')))
    back = pd.read_csv(write_submission(p, tmp_path/'s.csv', sample), index_col='id')
    np.testing.assert_allclose(back.loc[p.ids, list('abcde')], p.probs, atol=1e-6)

def test_submission_of_20000_ids_is_quick():
    "Quadratic, it took 23 s"
    p = Preds([f'test_images/{i:06d}.jpg' for i in range(20_000)], ['a', 'b'], np.full((20_000, 2), .5))
    sample = pd.DataFrame(dict(id=p.ids[::-1], label=''))
    start = time.process_time()
    assert submission(p, sample).id.tolist() == sample.id.tolist()
    assert spell_ids(p.ids, [Path(i).stem for i in p.ids])[-1] == '019999'
    assert time.process_time()-start < 2

def test_label_shares():
    shares = label_shares(preds, pd.DataFrame(dict(label=['cat', 'dog', 'dog', 'emu'])))
    assert shares.train.tolist() == [.25, .5, .25] and shares.predicted.round(3).tolist() == [.667, .333, 0]

# --- sending it

class Api:
    "Stands in for Kaggle's client"
    sent = 0
    def competition_submit(self, *args, **kw):
        self.sent += 1
        return 'Successfully submitted'

def test_an_edited_file_is_not_sent(tmp_path):
    comp, api = read_competition(kaggle(tmp_path)), Api()
    csv = write_submission(preds, tmp_path/'s.csv', comp.sample)
    good = pd.read_csv(csv, dtype=str)
    bad = [good.rename(columns=dict(id='image')), good[::-1], good[1:], good.assign(label=''), good.assign(label=['cow', 'cat', 'dog'])]
    for table in bad:
        table.to_csv(csv, index=False)
        with pytest.raises(DataError, match='write_submission'): submit(csv, 'c', 'm', comp.sample, ['cat', 'dog'], api=api)
    good.assign(label='cat').to_csv(csv, index=False)
    with pytest.raises(DataError, match='kaggle competitions submit'): submit(csv, 'c', 'm', comp.sample, ['cat', 'dog'], api=api)
    assert not api.sent and not list(tmp_path.glob('*.sent.csv'))
    good.to_csv(csv, index=False)
    assert 'Not sent' in submit(csv, 'c', 'm', comp.sample, ['cat', 'dog'], dry_run=True, api=api) and not api.sent
    assert 'Successfully' in submit(csv, 'c', 'm', comp.sample, ['cat', 'dog'], api=api) and api.sent == 1

@pytest.mark.parametrize('head,rows,fine', [
    ('id,dog', [['.9'], ['.1'], ['0']], True), ('id,dog', [['.2'], ['.1'], ['0']], True), ('id,dog', [['.2'], ['.2'], ['.2']], False),
    ('id,dog', [['1.2'], ['.1'], ['0']], False), ('id,dog', [['nan'], ['.1'], ['0']], False),
    ('id,cat,dog', [['.9', '.1'], ['.4', '.6'], ['1', '0']], True), ('id,cat,dog', [['.9', '.1'], ['.6', '.4'], ['1', '0']], False),
    ('id,cat,dog', [['.9', '.2'], ['.4', '.6'], ['1', '0']], False)])
def test_probabilities_of_a_submission(tmp_path, head, rows, fine):
    asked = pd.DataFrame([[i, *['0.5']*len(rows[0])] for i in '123'], columns=head.split(','))
    pd.DataFrame([[i, *r] for i, r in zip('123', rows)], columns=head.split(',')).to_csv(tmp_path/'s.csv', index=False)
    labels = ['cat', 'dog']
    if fine: assert len(check_submission(tmp_path/'s.csv', asked, labels)) == 3
    else:
        with pytest.raises(DataError): check_submission(tmp_path/'s.csv', asked, labels)

def test_a_second_submission_is_compared_with_the_first(tmp_path):
    csv = write_submission(Preds(list('abcd'), ['x', 'y'], [[1, 0], [0, 1], [0, 1], [1, 0]]), tmp_path/'s.csv')
    first = submit(csv, 'c', 'm', api=Api())
    assert 'last' not in first and 'not compared with a sample (--data)' in first
    assert 'exactly the same' in submit(csv, 'c', 'm', api=Api())
    write_submission(Preds(list('dcba'), ['x', 'y'], [[1, 0], [0, 1], [0, 1], [0, 1]]), csv)
    assert '1 of 4 answers differ' in submit(csv, 'c', 'm', dry_run=True, api=Api())

@pytest.fixture
def kaggle_server(tmp_path, monkeypatch):
    "Kaggle's own client, talking to a server on this machine; the server's dict says how it answers and what it got"
    for k, v in dict(KAGGLE_API_ENVIRONMENT='LOCALHOST', KAGGLE_CONFIG_DIR=str(tmp_path/'conf'), KAGGLE_USERNAME='me', KAGGLE_KEY='key').items():
        monkeypatch.setenv(k, v)
    monkeypatch.delenv('KAGGLE_API_TOKEN', raising=False)
    pytest.importorskip('kaggle', reason='the extra kaggle is not installed')
    from kagglesdk import kaggle_env
    state = dict(upload=200, submit=200, got=[])
    class Handler(BaseHTTPRequestHandler):
        def answer(self, status, body):
            data = json.dumps(body).encode()
            self.send_response(status)
            for k, v in {'Content-Type': 'application/json', 'Content-Length': len(data)}.items(): self.send_header(k, str(v))
            self.end_headers()
            self.wfile.write(data)
        def body(self): return self.rfile.read(int(self.headers.get('Content-Length') or 0))
        def do_POST(self):
            name, body = self.path.rsplit('/', 1)[1], json.loads(self.body())
            state['got'].append((name, body))
            if name == 'StartSubmissionUpload': return self.answer(200, dict(token='t', createUrl=f'{url}/put'))
            if state['submit'] != 200: return self.answer(state['submit'], dict(code=state['submit'], message='no such competition'))
            self.answer(200, dict(message='Successfully submitted to Digits', ref=1))
        def do_PUT(self):
            state['got'].append(('upload', self.body().decode()))
            self.answer(state['upload'], {})
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(('localhost', 0), Handler)
    url = f'http://localhost:{server.server_port}'
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.LOCAL, url)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()

def test_kaggles_own_client_sends_the_file(tmp_path, kaggle_server):
    csv = write_submission(preds, tmp_path/'s.csv')
    assert submit(csv, 'digits', 'a note').endswith('Kaggle says: Successfully submitted to Digits')
    names = [n for n, _ in kaggle_server['got']]
    assert names == ['StartSubmissionUpload', 'upload', 'CreateSubmission']
    assert kaggle_server['got'][1][1] == csv.read_text() and (tmp_path/'s.sent.csv').exists()
    assert kaggle_server['got'][2][1] | dict(competitionName='digits', submissionDescription='a note') == kaggle_server['got'][2][1]

def test_a_failed_upload_is_an_error(tmp_path, kaggle_server, capsys):
    csv = write_submission(preds, tmp_path/'s.csv')
    kaggle_server['upload'] = 403
    with pytest.raises(SettingsError, match='(?s)was not sent: Could not submit.*Fix: '): submit(csv, 'digits', 'a note')
    kaggle_server.update(upload=200, submit=404)
    with pytest.raises(SettingsError, match='(?s)did not take s.csv: no such competition.*Fix: '): submit(csv, 'digits', 'a note')
    assert not (tmp_path/'s.sent.csv').exists()

def test_without_a_client_or_credentials(tmp_path, monkeypatch):
    csv = write_submission(preds, tmp_path/'s.csv')
    monkeypatch.setitem(sys.modules, 'kaggle.api.kaggle_api_extended', None)
    with pytest.raises(SettingsError, match=r"pip install 'vision_ft\[kaggle\]'"): submit(csv, 'digits', 'a note')
    class NoToken:
        def authenticate(self): sys.exit(1)
    monkeypatch.setitem(sys.modules, 'kaggle.api.kaggle_api_extended', SimpleNamespace(KaggleApi=NoToken))
    with pytest.raises(SettingsError, match='KAGGLE_API_TOKEN'): submit(csv, 'digits', 'a note')

# --- ids and blanks

def test_blanks_never_reach_the_submission(tmp_path):
    train_csv(kaggle(tmp_path, 'id , label\n1 ,cat\n 2,\n3,dog \n'), ' id, label\n'+rows(', ', cat=6, dog=6))
    (tmp_path/'solution.csv').write_text('id, label\n1, cat\n2, dog\n3, dog\n')
    with pytest.warns(UserWarning, match='blanks') as said: comp = read_competition(tmp_path)
    assert {Path(str(w.message).split(':')[0]).name for w in said} == {'train.csv', 'sample_submission.csv', 'solution.csv'}
    assert comp.truth == {'1': 'cat', '2': 'dog', '3': 'dog'} and set(comp.train.label) == {'cat', 'dog'}
    assert text(write_submission(preds, tmp_path/'s.csv', comp.sample)) == ['id,label', '1,cat', '2,dog', '3,cat']

@pytest.mark.parametrize('folder', ['', 'test/', 'a b/c.d/'])
@pytest.mark.parametrize('spell', ['{f}{i}.png', '{f}{i}', '{i}.png', '{i}'])
def test_ids_are_written_as_the_sample_spells_them(tmp_path, folder, spell):
    ids = [spell.format(f=folder, i=i) for i in (2, 3, 1)]
    kaggle(tmp_path, 'id,label\n'+''.join(f'{i},cat\n' for i in ids))
    (tmp_path/'solution.csv').write_text('id,label\n1,cat\n2,dog\n3,cat\n')
    for i in (1, 2, 3):
        (tmp_path/'test_images'/folder).mkdir(parents=True, exist_ok=True)
        (tmp_path/'test_images'/f'{i}.png').rename(tmp_path/'test_images'/folder/f'{i}.png')
    comp = read_competition(tmp_path)
    assert set(comp.test.id) == set(ids) and comp.truth == dict(zip(ids, ['dog', 'cat', 'cat']))
    for i, path in zip(comp.test.id, comp.test.path): assert Path(path).stem == Path(i).stem
    answer = submission(Preds(comp.test.id, ['cat', 'dog'], np.full((3, 2), .5)), comp.sample)
    assert answer.id.tolist() == ids

@pytest.mark.parametrize('names', ['\xe91 \xe92 \xe93', './1 ./2 ./3', '1.PNG 2.PNG 3.PNG', './a/1.png ./a/2.png ./a/3.png', '\xc91 \xc92 \xc93'])
def test_ids_that_are_spelled_otherwise_find_their_files(tmp_path, names):
    "Unicode form, ./ and case: the files keep their paths, the submission the ids of the sample"
    ids = names.split()
    kaggle(tmp_path, 'id,label\n'+''.join(f'{i},cat\n' for i in ids))
    paths = [tmp_path/'test_images'/re.sub('[\xe9\xc9]', 'e\u0301', i.lower().removesuffix('.png')+'.png') for i in ids]
    for k, path in enumerate(paths, 1):
        path.parent.mkdir(exist_ok=True)
        (tmp_path/'test_images'/f'{k}.png').rename(path)
    (tmp_path/'solution.csv').write_text('id,label\n'+''.join(f'{i.upper()},{c}\n' for i, c in zip(ids, ('cat', 'dog', 'dog'))))
    comp = read_competition(tmp_path)
    assert dict(zip(comp.test.id, comp.test.path)) == dict(zip(ids, map(str, paths)))
    assert comp.truth == dict(zip(ids, ('cat', 'dog', 'dog'))) and submission(Preds(comp.test.id, ['cat', 'dog'], np.full((3, 2), .5)), comp.sample).id.tolist() == ids

# --- reading doesn't write

def files(folder): return {p: p.stat().st_mtime_ns for p in Path(folder).rglob('*')}

def test_reading_writes_nothing_and_a_mended_folder_is_read(tmp_path):
    data, csv = plain(tmp_path/'data', cat=12, dog=12, emu=5), tmp_path/'holdout.csv'
    before = files(tmp_path)
    comp = read_competition(data, holdout_csv=csv)
    with pytest.raises(DataError, match="class 'emu'"): saved_split(comp.train, tmp_path/'split.csv', write=False)
    assert files(tmp_path) == before
    for i in range(5, 12): image(data/'emu'/f'{i}.png', 70000+i) # as advised: more images
    comp = read_competition(data, holdout_csv=csv)
    split = saved_split(comp.train, tmp_path/'split.csv', write=False)
    save_split(comp.holdout, csv)
    save_split(split, tmp_path/'split.csv')
    again = read_competition(data, seed=1, holdout_csv=csv)
    assert_frame_equal(again.train, comp.train)
    assert_frame_equal(again.test, comp.test)
    assert again.truth == comp.truth and sorted([*comp.train.id, *comp.test.id]) == sorted(comp.holdout.id)
    assert_frame_equal(saved_split(again.train, tmp_path/'split.csv', seed=1), split)

def test_a_kaggle_folder_has_no_holdout(tmp_path): assert read_competition(kaggle(tmp_path)).holdout is None

@pytest.mark.parametrize('n', [3, 4, 5, 6, 7, 11])
@pytest.mark.parametrize('holdout', [.5, .33, .2, .1])
def test_a_small_class_gets_advice_that_ends_in_a_split(tmp_path, n, holdout):
    "Whatever --holdout and --folds are advised, or else a class dropped: in the end there is a split"
    data, options = plain(tmp_path, cat=40, dog=40, emu=n), dict(holdout=holdout, folds=5)
    for _ in range(4):
        try:
            comp = read_competition(data, options['holdout'])
            make_split(comp.train, options['folds'])
            break
        except VisionFTError as e:
            advised = {k: float(v) if k == 'holdout' else int(v) for k, v in re.findall(r'--(holdout|folds) ([\d.]+)', e.fix)}
            assert 'drop the class' in e.fix and advised.items()-options.items() or not advised, f'{options}: {e}'
            options.update(advised)
            if not advised: shutil.rmtree(data/'emu')
    else: pytest.fail(f'never a split: {options}')

# --- every refusal, and its advice followed

def refused(folder, says, **kwargs):
    with pytest.raises(VisionFTError, match=says) as e: read_competition(folder, **kwargs)
    assert e.value.fix
    return e.value

def replace(f, a, b): f.write_text(f.read_text().replace(a, b))

def no_folder(d):
    refused(d/'dta', 'no folder')
    return plain(d/'data', cat=6, dog=6)

def no_test_images(d):
    shutil.rmtree(kaggle(d)/'test_images')
    refused(d, 'no test_images')
    return d/'train_images'

def loose_moved(d):
    image(plain(d, cat=6, dog=6)/'7.png', 7)
    refused(d, 'beside the class folders')
    (d/'7.png').rename(d/'cat'/'7.png')
    return d

def loose_with_a_csv(d):
    train_csv(kaggle(d), CSV)
    (d/'train_images').rename(d/'pictures')
    (d/'train.csv').rename(d/'pictures'/'labels.csv')
    refused(d/'pictures', r'name it train.csv')
    (d/'pictures'/'labels.csv').rename(d/'train.csv')
    (d/'pictures').rename(d/'train_images')
    return d

def parts_one_passed(d):
    plain(d/'train', cat=6, dog=6)
    assert f'such as {d/"train"}' in refused(d, 'parts of data').fix
    return d/'train'

def parts_without_train(d):
    for part in ('valid', 'test'): plain(d/part, cat=6, dog=6)
    assert f'such as {d/"test"}' in refused(d, 'parts of data').fix
    return d/'test'

def parts_without_labels(d):
    train_csv(kaggle(d), CSV)
    for part in ('train', 'test'): (d/f'{part}_images').rename(d/part)
    (d/'train.csv').rename(d/'labels.csv')
    assert 'train.csv beside' in refused(d, 'parts of data').fix
    (d/'labels.csv').rename(d/'train.csv')
    return d

def parts_twice(d):
    for part in ('train_1', 'train_2', 'test'): plain(d/part, cat=6, dog=6)
    assert 'join them in one folder' in refused(d, 'holds train_1, train_2: one part').fix
    for f in (d/'train_2').glob('*/*'): f.rename(d/'train_1'/f.parent.name/f'more {f.name}')
    shutil.rmtree(d/'train_2')
    return d

def unknown_class_of_valid(d):
    plain(d/'train', cat=12, dog=12)
    plain(d/'valid', cat=6, dog=6, emu=2)
    assert 'or remove them' in refused(d, r"no training image has .*: \['emu'\]").fix
    shutil.rmtree(d/'valid'/'emu')
    return d

def unknown_class_of_test(d):
    plain(d/'train', cat=12, dog=12)
    plain(d/'test', cat=6, dog=6, emu=2)
    assert 'remove these folders' in refused(d, r"\['emu'\] are no classes").fix
    shutil.rmtree(d/'test'/'emu')
    return d

def other_suffixes(d):
    for f in plain(d, cat=6, dog=6).glob('*/*.png'): f.rename(f.with_suffix('.ppm'))
    assert '12 of the unknown kind .ppm' in str(refused(d, 'holds no images'))
    for f in d.glob('*/*.ppm'):
        Image.open(f).save(f.with_suffix('.png'))
        f.unlink()
    return d

def not_utf8(d):
    plain(d, cat=6, dog=6)
    bad = os.fsencode(d/'cat')+b'/caf\xe9.png'
    try: os.rename(d/'cat'/'0.png', bad)
    except OSError: pytest.skip('this file system takes UTF-8 names only')
    assert r'caf\udce9.png' in str(refused(d, 'not in UTF-8'))
    os.rename(bad, d/'cat'/'café.png')
    return d

def not_utf8_test(d):
    bad = os.fsencode(kaggle(d)/'test_images')+b'/\xe9.png'
    try: os.rename(d/'test_images'/'1.png', bad)
    except OSError: pytest.skip('this file system takes UTF-8 names only')
    refused(d, 'not in UTF-8')
    os.rename(bad, d/'test_images'/'1.png')
    return d

def folder_above(d):
    plain(d/'rice', cat=6, dog=6)
    refused(d, "the label 'rice'")
    return d/'rice'

def one_class(d):
    plain(d, cat=6)
    refused(d, "the label 'cat'")
    return plain(d, cat=6, dog=6)

def one_image(d):
    refused(plain(d, cat=6, dog=6, emu=1), 'a single image')
    shutil.rmtree(d/'emu')
    return d

def broken_replaced(d):
    (plain(d, cat=6, dog=6)/'cat'/'0.png').write_bytes(b'')
    refused(d, 'cannot be read')
    image(d/'cat'/'0.png', 0)
    return d

def broken_removed(d):
    (train_csv(kaggle(d), CSV)/'train_images'/'cat0.png').write_bytes(b'')
    refused(d, 'cannot be read')
    (d/'train_images'/'cat0.png').unlink()
    refused(d, 'remove their rows')
    replace(d/'train.csv', 'cat0.png,cat\n', '')
    return d

def broken_test(d):
    (kaggle(d)/'test_images'/'1.png').write_bytes(b'')
    refused(d, r'1 of 3 test images cannot be read: 1 empty: 0 bytes \(1\)')
    image(d/'test_images'/'1.png', 90001)
    return d

def sample_of_one_column(d):
    refused(kaggle(d, 'id\n1\n2\n3\n'), 'has one column')
    (d/'sample_submission.csv').write_text('id,label\n1,\n2,\n3,\n')
    return d

def sample_twice(d):
    refused(kaggle(d, 'id,label\n1,cat\n2,cat\n3,cat\n3,cat\n'), '1 duplicate ids')
    replace(d/'sample_submission.csv', '3,cat\n3,cat\n', '3,cat\n')
    return d

def sample_and_files(d):
    image(kaggle(d, 'id,label\n1,cat\n2,cat\n4,cat\n')/'test_images'/'new'/'5.png', 5)
    assert "['4']" in str(refused(d, '1 ids without a file'))
    image(d/'test_images'/'4.png', 90004)
    (d/'test_images'/'3.png').unlink()
    assert 'new/5' in str(refused(d, '1 files without an id'))
    (d/'test_images'/'new'/'5.png').unlink()
    return d

def one_probability_renamed(d):
    refused(kaggle(d, 'id,label\n1,0.5\n2,0.5\n3,0.5\n'), 'does not say of which class: there are cat, dog')
    for name, new in (('cat', '0'), ('dog', '1')): (d/'train_images'/name).rename(d/'train_images'/new)
    return d

def one_probability_of_three(d):
    e = refused(kaggle(d, 'id,label\n1,0.5\n2,0.5\n3,0.5\n', cat=6, dog=6, emu=6), 'does not say of which class')
    assert 'rename' not in e.fix
    replace(d/'sample_submission.csv', '0.5', '')
    return d

def wide_sample(d):
    e = refused(kaggle(d, 'id,Dog,cat\n1,0.5,0.5\n2,0.5,0.5\n3,0.5,0.5\n'), 'are not the classes')
    assert "['Dog']" in str(e) and "['dog']" in str(e)
    replace(d/'sample_submission.csv', 'Dog', 'dog')
    return d

def sample_in_other_case(d):
    refused(kaggle(d, 'id,label\n1,Cat\n2,Dog\n3,Cat\n'), "the cell 'Cat'")
    for name in ('cat', 'dog'): (d/'train_images'/name).rename(d/'train_images'/name.title())
    return d

def sample_of_places(d):
    refused(kaggle(d, 'id,label\n1,predict me\n2,5\n3,cat dog\n'), "the cell '5'")
    (d/'sample_submission.csv').write_text('id,label\n1,\n2,\n3,\n')
    return d

def solution_lacks(d):
    (kaggle(d)/'solution.csv').write_text('id,label\n1,cat\n')
    refused(d, 'lacks 2 test images, such as 2')
    (d/'solution.csv').write_text('id,label\n1,cat\n2,dog\n3,dog\n')
    return d

def solution_strange(d):
    (kaggle(d)/'solution.csv').write_text('id,label\n1,cat\n2,dog\n3,emu\n')
    refused(d, 'no training image has')
    (d/'solution.csv').unlink()
    return d

def solution_of_one_column(d):
    (kaggle(d)/'solution.csv').write_text('id\n1\n2\n3\n')
    refused(d, 'no training image has')
    (d/'solution.csv').unlink()
    return d

def csv_without_label(d):
    train_csv(kaggle(d), CSV.replace('label', 'breed'))
    assert 'label_col' not in refused(d, 'there are id, breed').fix.split('(in Python')[0]
    replace(d/'train.csv', 'breed', 'label')
    return d

def csv_of_columns(d):
    train_csv(kaggle(d), 'id,cat,dog\n'+''.join(f'{c}{i}.png,{int(c == "cat")},{int(c == "dog")}\n' for c in ('cat', 'dog') for i in range(6)))
    refused(d, 'the class of each image in one column named label')
    t = pd.read_csv(d/'train.csv')
    t.assign(label=t[['cat', 'dog']].idxmax(axis=1))[['id', 'label']].to_csv(d/'train.csv', index=False)
    return d

def csv_without_id(d):
    refused(train_csv(kaggle(d), CSV.replace('id', 'photo')), 'one column named id')
    replace(d/'train.csv', 'photo', 'id')
    return d

def csv_semicolons(d):
    refused(train_csv(kaggle(d), CSV.replace(',', ';')), 'semicolons')
    replace(d/'train.csv', ';', ',')
    return d

def csv_latin1(d):
    (train_csv(kaggle(d), CSV)/'train.csv').write_bytes(CSV.replace(',cat', ',é').encode('latin-1'))
    refused(d, 'not CSV in UTF-8')
    (d/'train.csv').write_text(CSV.replace(',cat', ',é'), encoding='utf-8')
    (d/'sample_submission.csv').unlink()
    return d

def csv_empty(d):
    refused(train_csv(kaggle(d), ''), 'is empty')
    (d/'train.csv').write_text(CSV)
    return d

def csv_header_only(d):
    refused(train_csv(kaggle(d), 'id,label\n'), 'has no rows')
    (d/'train.csv').write_text(CSV)
    return d

def csv_of_two_suffixes(d):
    image(train_csv(kaggle(d), CSV.replace('.png', ''))/'train_images'/'cat0.jpg', 1)
    refused(d, 'several files')
    replace(d/'train.csv', 'cat0,', 'cat0.png,')
    return d

def csv_one_file_twice(d):
    refused(train_csv(kaggle(d), CSV+'cat0,cat\n'), 'name the same file')
    (d/'train.csv').write_text(CSV)
    return d

def csv_repeats(d):
    refused(train_csv(kaggle(d), CSV+'cat0.png,cat\n'), 'rows that repeat an id: 1')
    (d/'train.csv').write_text(CSV)
    return d

def csv_short_rows(d):
    refused(train_csv(kaggle(d), CSV+'new.png\n'), '1 of 13 rows have no label')
    replace(d/'train.csv', 'new.png\n', '')
    return d

def two_of_a_class(d):
    e = refused(plain(d, cat=12, dog=12, emu=2), "class 'emu' has 2 images in 2 groups")
    assert '--' not in e.fix
    for i in range(2, 6): image(d/'emu'/f'{i}.png', 60000+i)
    return d

def copies_of_a_class(d):
    for i in range(5): image(plain(d, cat=12, dog=12)/'emu'/f'{i}.png', 1)
    refused(d, "class 'emu' has 5 images in 1 group ")
    shutil.rmtree(d/'emu')
    return d

CASES = [no_folder, no_test_images, loose_moved, loose_with_a_csv, parts_one_passed, parts_without_train,
         parts_without_labels, parts_twice, unknown_class_of_valid, unknown_class_of_test,
         other_suffixes, not_utf8, not_utf8_test, folder_above, one_class, one_image, broken_replaced, broken_removed,
         broken_test, sample_of_one_column, sample_twice, sample_and_files, one_probability_renamed,
         one_probability_of_three, wide_sample, sample_in_other_case, sample_of_places, solution_lacks,
         solution_strange, solution_of_one_column, csv_without_label, csv_of_columns, csv_without_id, csv_semicolons,
         csv_latin1, csv_empty, csv_header_only, csv_of_two_suffixes, csv_one_file_twice, csv_repeats,
         csv_short_rows, two_of_a_class, copies_of_a_class]

@pytest.mark.parametrize('case', CASES, ids=lambda f: f.__name__)
def test_advice_works_when_followed(tmp_path, case):
    "Each case is refused as it says, then changed as advised; the folder that it returns is read"
    (tmp_path/'d').mkdir()
    comp = read_competition(case(tmp_path/'d'))
    assert comp.train.label.nunique() > 1 and len(comp.test)

def test_the_share_held_out_can_be_followed(tmp_path):
    data, csv = plain(tmp_path/'data', cat=12, dog=12), tmp_path/'holdout.csv'
    e = refused(data, 'at most 0.5', holdout=.4)
    for share in re.findall(r'0\.\d+', e.fix): assert len(read_competition(data, holdout=float(share)).test)
    save_split(read_competition(data, holdout=1/3).holdout, csv)
    e = refused(data, 'holds out one image in 3', holdout_csv=csv)
    share = float(re.search(r'--holdout ([\d.]+)', e.fix)[1])
    assert len(read_competition(data, holdout=share, holdout_csv=csv).test) == 8
    image(data/'cat'/'new.png', 99)
    with pytest.warns(UserWarning, match='1 image new'): assert len(read_competition(data, holdout=share, holdout_csv=csv).holdout) == 25
    assert len(read_competition(data, holdout=share, holdout_csv=tmp_path/'other'/'holdout.csv').train) == 16 # another --out
    (data/'cat'/'new.png').unlink()
    assert read_competition(data, holdout=share, holdout_csv=csv)
    groups = dict.fromkeys([f'cat/{i}.png' for i in range(4)], 'plant')
    refused(data, 'made without these groups', holdout=share, groups=groups, holdout_csv=csv)
    assert read_competition(data, holdout=share, groups=groups, holdout_csv=tmp_path/'other'/'holdout.csv')

# --- layouts in parts

LAYOUTS = [(('train', 'valid', 'test'), ''), (('train', 'val', None), ''), (('Training', None, 'Testing'), ''), (('seg_train', None, 'seg_test'), ''),
           (('train', 'validation', 'test'), 'set/set'), (('train_images', None, 'test_images'), ''), (('Train Set', 'dev-set', 'test_2024'), ''),
           (('seg_train/seg_train', None, 'seg_test/seg_test'), 'archive'), (('training', 'validation', 'evaluation'), ''), (('train', 'eval', None), '')]

@pytest.mark.parametrize('names,nested', LAYOUTS, ids=str)
def test_the_usual_layouts_are_kept_as_splits(tmp_path, names, nested):
    "Training, validation and test images come from their folders, ids are unique, the numbers are said"
    root, (train, valid, test) = tmp_path/nested, names
    (tmp_path/'__MACOSX').mkdir()
    for k, (part, n) in enumerate([(train, 20), (valid, 5), (test, 4)]): # the same names in each part
        for c in ('cat', 'dog'):
            for i in range(n if part else 0): image(root/part/c/f'{i}.png', 10000*k+1000*(c == 'dog')+i)
    (root/'.hidden').mkdir(); (root/'notes').mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        comp = read_competition(tmp_path)
    assert not set(comp.train.id) & set(comp.test.id) and comp.train.id.is_unique
    assert all((root/i).samefile(p) for t in (comp.train, comp.test) for i, p in zip(t.id, t.path)) # ids are paths below the data
    assert comp.truth == {i: Path(p).parent.name for i, p in zip(comp.test.id, comp.test.path)}
    assert len(comp.test) == (8 if test else 8) and (comp.holdout is None) == bool(test) and (comp.split is None) == (not valid)
    assert {i.split('/')[0] for i in comp.test.id} == {(test or train).split('/')[0]}
    if valid:
        fit, held = split_rows(comp.train, comp.split, 0)
        assert {i.split('/')[0] for i in held.id} == {valid} and len(held) == 10 and {i.split('/')[0] for i in fit.id} == {train}
        assert '10 in the given validation set' in repr(comp) and f'{len(fit)} training images' in repr(comp)
        assert read_split(save_split(comp.split, tmp_path/'out'/'split.csv'), comp.train).equals(comp.split)

def test_parts_by_csv_file_and_test_images_without_truth(tmp_path):
    train_csv(kaggle(tmp_path), CSV)
    for part in ('train', 'test'): (tmp_path/f'{part}_images').rename(tmp_path/part)
    for i in range(4): image(tmp_path/'val'/f'{i}.png', 500+i)
    (tmp_path/'val.csv').write_text('id,label\n'+''.join(f'{i},{c}\n' for i, c in enumerate(['cat', 'dog']*2)))
    image(tmp_path/'extra'/'a.png', 1)
    with pytest.warns(UserWarning, match=r'left out, since they are no part: extra \(1\)'): comp = read_competition(tmp_path)
    assert comp.truth is None and comp.test.id.tolist() == ['1', '2', '3'] and comp.split.groupby('fold').size().to_dict() == {0: 4, 1: 12}
    assert dict(zip(comp.train.id, comp.train.label))['val/1.png'] == 'dog'

def test_images_and_groups_in_two_given_parts_are_counted(tmp_path):
    for k, part in enumerate(('train', 'valid', 'test')):
        for c in ('cat', 'dog'):
            for i in range(6): image(tmp_path/part/c/f'{i}.png', 1000*k+100*(c == 'dog')+i)
    for i in range(2): shutil.copy(tmp_path/'train'/'cat'/f'{i}.png', tmp_path/'valid'/'cat'/f'copy {i}.png')
    shutil.copy(tmp_path/'valid'/'dog'/'0.png', tmp_path/'test'/'dog'/'copy.png')
    with pytest.warns(UserWarning) as said: comp = read_competition(tmp_path, groups={'train/dog/1.png': 'plant', 'test/dog/1.png': 'plant'})
    text = '\n'.join(str(w.message) for w in said)
    assert len(said) == 3 and '2 of 14 validation images byte for byte among the training images too' in text and '1 of 13 test images byte for byte among the validation images too' in text
    assert '1 group in several of train, valid, test' in text and said[0].filename == __file__
    assert len(comp.train) == 26 and len(comp.test) == 13 # kept, as it was given

def test_classes_named_like_parts_are_no_parts(tmp_path):
    comp = read_competition(plain(tmp_path, train=12, bus=12, car=12))
    assert set(comp.train.label) == {'train', 'bus', 'car'} and comp.split is None

@pytest.mark.parametrize('path', [['a'], None, pd.DataFrame(), 'no/such', 5])
def test_what_is_no_folder_is_refused_in_one_sentence(path):
    with pytest.raises(DataError, match='no folder'): read_competition(path)

def test_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    plain(tmp_path/'data', cat=12, dog=12)
    comp = read_competition('~/data')
    assert len(comp.train) and write_submission(Preds(comp.test.id, ['cat', 'dog'], np.full((len(comp.test), 2), .5)), '~/s.csv') == tmp_path/'s.csv'
    save_split(comp.holdout, '~/h.csv')
    assert read_competition('~/data', holdout_csv='~/h.csv', seed=9).test.id.tolist() == comp.test.id.tolist()

# --- the hold-out of a folder that changes

def test_no_image_leaves_the_test_set_when_others_come_and_go(tmp_path):
    data, csv = tmp_path/'data', tmp_path/'holdout.csv'
    for k, c in enumerate(('cat', 'dog')):
        for i in range(30): image(data/c/f'{c}{i}.png', 1000*k+i)
    before = read_competition(data, holdout_csv=csv)
    save_split(before.holdout, csv)
    (data/before.train.id[0]).unlink()
    (data/before.test.id[0]).unlink()
    for i in range(7): image(data/'cat'/f'new {i}.png', 500+i)
    moved = Path(before.test.id[1]) # the folder is its label, so this image gets another label and another id
    (data/moved).rename(data/dict(cat='dog', dog='cat')[moved.parent.name]/moved.name)
    shutil.copy(data/before.test.id[2], data/'dog'/'copy of a test image.png')
    with pytest.warns(UserWarning, match=r'holdout.csv: since this split was made, 2 images gone .* 8 images new .* 1 image moved .*All others keep'):
        after = read_competition(data, holdout_csv=csv)
    assert not {Path(i).name for i in before.test.id} & {Path(i).name for i in after.train.id} and not set(before.train.id) & set(after.test.id)
    assert 'dog/copy of a test image.png' in set(after.test.id)
    save_split(after.holdout, csv)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert_frame_equal(read_competition(data, holdout_csv=csv).test, after.test)

def test_ids_are_those_of_the_test_images_where_there_is_no_sample(tmp_path):
    "With or without suffix; a strange one or a lost one is refused"
    ids, csv = ['a.jpg', 'b.jpg'], tmp_path/'s.csv'
    for said, fine in ((['b', 'a'], True), (['a.jpg', 'b.jpg'], True), (['a'], False), (['a', 'x'], False), (['a', 'b', 'c'], False)):
        csv.write_text('image_id,label\n'+''.join(f'{i},{l}\n' for i, l in zip(said, ['cat', 'dog', 'cat'])))
        if fine: check_submission(csv, labels=['cat', 'dog'], ids=ids)
        else:
            with pytest.raises(DataError, match='are no test image, and'): check_submission(csv, labels=['cat', 'dog'], ids=ids)
