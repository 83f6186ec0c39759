"A finished run on new images: the run's own numbers, from its folder alone; bad files, bad runs and full disks change nothing else"
import errno, json, os, shutil, signal, subprocess, sys, time, warnings
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from vision_ft.classify import predict as P
from vision_ft.classify.compete import compete
from vision_ft.classify.settings import read_models
from vision_ft.classify.train import train
from vision_ft.core import DataError, Preds, PretrainedError, SettingsError, VisionFTError
from vision_ft.data.tables import image_table, read_folder, read_text
from vision_ft.samples import digits

@pytest.fixture(scope='module')
def done(tmp_path_factory):
    "A run whose data are gone, a copy of its test images, and its result"
    home = tmp_path_factory.mktemp('predict')
    data = digits(home/'digits')
    result = compete(data, home/'run', models='tiny', epochs=1, flip=False, progress=False, device='cpu', micro_bs=24)
    new = (data/'test_images').rename(home/'new')
    (data/'train_images').rename(home/'away')
    return home, new, result

@pytest.fixture(scope='module')
def vit(done): return P.load_run(done[0]/'run', model='vit', device='cpu')

@pytest.fixture
def some(done, tmp_path):
    "A folder of three images"
    folder = tmp_path/'some'
    folder.mkdir()
    for f in sorted(done[1].iterdir())[:3]: shutil.copy(f, folder)
    return folder

def truncate(path): path.write_bytes(path.read_bytes()[:-200])

# --- the numbers

def test_the_numbers_are_those_of_the_run(done):
    home, new, result = done
    p = P.predict(home/'run', new, tta=True, device='cpu', progress=False)
    assert np.array_equal(p.align(result.preds).probs, result.preds.probs)
    own = result.setup.runs[0].preds('test')
    one = P.predict(home/'run', new, model=own.name, device='cpu', progress=False)
    assert np.array_equal(one.align(own).probs, own.probs)
    alone = P.predict(home/'run'/'runs'/own.name, new, device='cpu', progress=False)
    assert np.array_equal(alone.probs, one.probs)

def test_in_parts_the_numbers_stay(done, tmp_path):
    home, new, result = done
    run = replace(P.load_run(home/'run', device='cpu'), at_once=1)
    assert P.predict_csv(run, new, tmp_path/'parts.csv', tta=True, probs=True, progress=False) == (360, 0)
    t = pd.read_csv(tmp_path/'parts.csv').set_index('file')
    assert list(t.columns) == 'label confidence runner_up runner_up_confidence error'.split()+[f'p({c})' for c in run.vocab]
    assert list(t.index) == [f.name for f in sorted(new.iterdir())] and t.error.isna().all()
    expect = result.preds.take(t.index.tolist())
    assert (t.label.astype(str) == expect.labels).all() and np.allclose(t.iloc[:, 5:], expect.probs, atol=1e-6)
    two = np.sort(expect.probs, 1)[:, :-3:-1]
    assert np.allclose(t[['confidence', 'runner_up_confidence']], two, atol=1e-6) and (t.runner_up != t.label).all()

def test_a_copy_says_the_same(done, some, tmp_path):
    run = P.load_run(done[0]/'run', device='cpu')
    copy = P.load_run(run.save(tmp_path/'copy'), device='cpu')
    assert np.array_equal(*(r.predict(some, tta=True, progress=False).probs for r in (run, copy)))
    assert repr(copy) == repr(run) and not list((tmp_path/'copy').rglob('*.parquet'))
    with pytest.raises(SettingsError, match='exists already'): run.save(tmp_path/'copy')

def test_bad_files_change_nothing_for_the_others(done, vit, tmp_path, monkeypatch):
    "Truncated, empty, no image, more than 8 bits: listed in their place; whole batches of the others as if they weren't there"
    home, new, _ = done
    folder = shutil.copytree(new, tmp_path/'mixed')
    files = sorted(folder.iterdir())
    for i in (3, 50, 51, 200): truncate(files[i])
    (folder/'000.jpg').write_bytes(b'')
    (folder/'5.jpg').write_text('<html>')
    Image.fromarray(np.full((32, 32), 60000, np.uint16)).save(folder/'999999.png')
    (folder/'1-gone.jpg').symlink_to(tmp_path/'nowhere.jpg')
    (folder/'notes.txt').touch()
    bad = {'000.jpg', '5.jpg', '1-gone.jpg', '999999.png', *(files[i].name for i in (3, 50, 51, 200))}
    good = [f for f in sorted(folder.iterdir()) if f.name not in {*bad, 'notes.txt'}]
    expect = P.predict(vit, good, progress=False)
    decoded, look = [], P.drop_unreadable
    monkeypatch.setattr(P, 'drop_unreadable', lambda t: (decoded.append(len(t)), look(t))[1])
    run = replace(vit, at_once=48)
    with pytest.warns(UserWarning) as said: p = P.predict(run, folder, progress=False)
    said = ' '.join(str(w.message) for w in said)
    for words in ('8 of 364 images cannot be read: 1 empty: 0 bytes (000.jpg); ', ' 1 FileNotFoundError', 'left out: 1 that is no image (notes.txt)'): assert words in said
    assert np.array_equal(p.probs, expect.probs) and [f.name for f in good] == list(p.ids)
    assert sum(n for n in decoded if n > 2) <= 3*48 # only where something is truncated is a part looked through
    assert P.predict_csv(run, folder, tmp_path/'mixed.csv', progress=False) == (356, 8)
    t = read_text(tmp_path/'mixed.csv')
    assert list(t.file) == [f.name for f in sorted(folder.iterdir()) if f.suffix != '.txt'] and set(t.file[t.error != '']) == bad
    assert (t.label[t.error != ''] == '').all() and 'truncated' in t.error[t.file == files[3].name].item()

def test_nothing_readable(vit, tmp_path):
    (tmp_path/'a.jpg').write_bytes(b'')
    (tmp_path/'b.jpg').symlink_to('nowhere')
    (tmp_path/'t.csv').write_text('as before')
    says = r'no image can be read: 1 empty: 0 bytes \(a.jpg\); 1 FileNotFoundError'
    with pytest.raises(DataError, match=says): P.predict(vit, tmp_path, progress=False)
    with pytest.raises(DataError, match=says): P.predict_csv(vit, tmp_path, tmp_path/'t.csv', progress=False)
    assert (tmp_path/'t.csv').read_text() == 'as before' and len(os.listdir(tmp_path)) == 3

def test_unreadable_images_get_the_mean_of_the_others(vit, some):
    names = sorted(os.listdir(some))
    (some/'0.jpg').write_bytes(b'')
    with pytest.warns(UserWarning, match='1 of 4 images cannot be read(.*)They get the mean'): p = vit.predict(some, progress=False, fill=True)
    assert list(p.ids) == ['0.jpg', *names] and np.allclose(p.probs[0], p.probs[1:].mean(0), atol=1e-6)
    assert np.array_equal(p.take(names).probs, vit.predict([some/n for n in names], progress=False).probs)

def test_a_name_does_not_change_the_prediction(done, some, tmp_path):
    run = P.load_run(done[0]/'run', device='cpu')
    renamed = tmp_path/'renamed'
    renamed.mkdir()
    for f in sorted(some.iterdir()): shutil.copy(f, renamed/f'IMG {f.name}')
    assert np.array_equal(*(run.predict(o, tta=True, progress=False).probs for o in (some, renamed)))

def test_a_fault_that_is_no_file_is_not_hidden(vit, some, monkeypatch):
    def fail(*args, **kwargs): raise RuntimeError('the device is gone')
    monkeypatch.setattr(P, 'predict_views', fail)
    with pytest.raises(RuntimeError, match='the device is gone'): P.predict(vit, some, progress=False)

# --- the images

def test_images_in_every_form(done, vit, some, tmp_path, monkeypatch):
    files = sorted(some.iterdir())
    names = [f.name for f in files]
    ids = lambda images: image_table(images).id.tolist()
    assert ids(some) == ids(str(some)) == names
    assert ids(files) == ids([*map(str, files)]) == ids(iter(files)) == ids(np.array(files, dtype=str)) == ids(str(some/'*.jpg')) == [*map(str, files)]
    assert ids(files[0]) == [str(files[0])] and ids(pd.DataFrame(dict(id=['a'], path=files[:1]))) == ['a']
    assert len(P.predict(vit, files[0], progress=False)) == 1
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    assert ids(['~/some/'+names[0]]) == ['~/some/'+names[0]] and ids('~/some') == names
    (some/'.hidden.jpg').write_bytes(b'')
    (some/'notes.txt').write_text('')
    deep = some/'日本'/'é'
    deep.mkdir(parents=True)
    (deep/'ü.JPG').symlink_to(files[0])
    (tmp_path/'other').symlink_to(deep)
    all_of_them = sorted([*(f'some/{n}' for n in names), 'some/日本/é/ü.JPG'])
    assert ids('some') == [o[5:] for o in all_of_them]
    assert ids(['some', 'other', './some', f'some/../some/{names[0]}', 'some/日本']) == [*all_of_them, 'other/ü.JPG']
    assert sorted(ids('some/*')) == sorted(ids('some/**')) == all_of_them
    assert ids(['some/.hidden.jpg', 'some/notes.txt']) == ['some/.hidden.jpg', 'some/notes.txt']
    assert len(P.predict(vit, 'other', progress=False)) == 1

@pytest.mark.parametrize('images, words', [
    ('none/*.gif', 'no image is named like'), ('no.jpg', 'there is no file or folder no.jpg'), ('empty', 'holds no images'), ([], 'no images to predict'),
    (np.zeros((8, 8)), 'ndarray names no file.'), (Image.new('RGB', (8, 8)), 'Image names no file'), (7, 'int names no file'),
    ([b'raw'], 'bytes names no file'), (pd.DataFrame(dict(path=['a'])), 'no column id'), (['a', 'b'], '2 of 2 files do not exist')])
def test_images_that_are_none(images, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'empty').mkdir()
    with pytest.raises(DataError, match=words): image_table(images)

# --- the run

def test_a_single_training(done, tmp_path):
    "Its folder is enough; the views are those of its flip; a Run will do"
    home = done[0]
    t = read_folder(home/'away')
    part = t.groupby('label').head(4)
    kept = train(part, t.groupby('label').tail(2), 'tiny_vit', size=32, item='squish 32', epochs=1, flip=False, run=tmp_path/'one', device='cpu', progress=False)
    run = P.load_run(tmp_path/'one', device='cpu')
    assert run.ensemble_weights == dict(one=1.) and run.views[1] == 'random1' and run.vocab == list(kept.learn.dls.vocab)
    p = run.predict(done[1], tta=True, progress=False)
    assert p.name == 'one' and len(p) == 360
    assert list(P.load_run(P.Run(tmp_path/'one'), device='cpu').learners) == ['one']
    moved = P.load_run((tmp_path/'one').rename(tmp_path/'my one'), device='cpu')
    assert list(P.load_run(moved.save(tmp_path/'copy'), device='cpu').learners) == ['my_one']

def test_what_a_loaded_run_says(done):
    run = P.load_run(done[0]/'run', device='cpu')
    says = repr(run)
    assert '3 models, 10 classes, on cpu' in says and 'tiny_convnext  squish 32  32x32            0.333' in says and 'views: plain, random1' in says
    assert run.models.loc['vit', 'size'] == '32x32' and run.models.loc['vit', 'mean'] == (.5, .5, .5)
    with pytest.raises(SettingsError, match='model comes too late'): P.predict(run, done[1], model='vit')

@pytest.fixture
def copied(done, tmp_path): return Path(shutil.copytree(done[0]/'run', tmp_path/'run'))

def edit(file, old, new): file.write_text(file.read_text().replace(old, new))

def record(run, change):
    file = run/'runs'/'vit'/'run.json'
    info = json.loads(file.read_text())
    change(info['stages'])
    file.write_text(json.dumps(info))

BROKEN = {
    'there is no folder': shutil.rmtree,
    'holds no finished run': lambda r: [shutil.rmtree(r/'runs'), (r/'runs.csv').unlink()],
    'has not ended': lambda r: (r/'runs.csv').unlink(),
    "training of 'vit' .* is not done; it is not started": lambda r: shutil.rmtree(r/'runs'/'vit'),
    "training of 'vit' .* is not done; it is failed": lambda r: record(r, lambda s: s['train'].update(status='failed')),
    'is not the record of a run': lambda r: (r/'runs'/'vit'/'run.json').write_text('{'),
    'are gone': lambda r: (r/'runs'/'vit'/'checkpoints'/'model.safetensors').unlink(),
    'cannot be read as weights': lambda r: truncate(r/'runs'/'vit'/'checkpoints'/'model.safetensors'),
    'does not fit': lambda r: shutil.copy(r/'runs'/'swin'/'checkpoints'/'model.safetensors', r/'runs'/'vit'/'checkpoints'/'model.safetensors'),
    'do not fit its classes': lambda r: record(r, lambda s: s['train']['settings']['vocab'].pop()),
    'predicted in different views': lambda r: record(r, lambda s: s['predict']['settings'].update(views=['plain'])),
    'lacks the column': lambda r: edit(r/'runs.csv', 'ensemble_weight', 'weight'),
    'no weights of an ensemble: could not': lambda r: edit(r/'runs.csv', '0.3333333333333333', 'much'),
    'no weights of an ensemble: weights of models': lambda r: edit(r/'runs.csv', '0.3333333333333333', '-1'),
    "model of this run 'cnn' does not exist": lambda r: 'cnn',
    "name '../vit' can't be the name of a folder": lambda r: [shutil.copytree(r/'runs'/'vit', r/'vit'), edit(r/'runs.csv', 'vit,', '../vit,')],
    "name '/.*vit' can't be the name of a folder": lambda r: edit(r/'runs.csv', 'vit,', f'{r/"runs"/"vit"},'),
    "name '..' can't be the name of a folder": lambda r: edit(r/'runs.csv', 'vit,', '..,')}

@pytest.mark.parametrize('words', BROKEN)
def test_a_run_that_cannot_be_used_is_refused_before_anything_is_written(words, copied, some, tmp_path):
    model = BROKEN[words](copied)
    with pytest.raises(VisionFTError, match=words) as e:
        P.predict_csv(copied, some, tmp_path/'to'/'x.csv', device='cpu', progress=False, model=model if isinstance(model, str) else None)
    assert e.value.fix and not (tmp_path/'to').exists()

def test_one_sound_model_of_a_broken_run(copied, some):
    shutil.rmtree(copied/'runs'/'vit')
    assert P.predict(copied, some, model='swin', device='cpu', progress=False).name == 'swin'

def test_a_model_without_weight_is_not_run(copied, some):
    edit(copied/'runs.csv', '32x32,0.3333333333333333,0.1', '32x32,0.0,0.1')
    run = P.load_run(copied, device='cpu')
    assert 0 < len(run.learners) < 3 and set(run.learners) == set(run.ensemble_weights)
    assert list(P.load_run(copied, model='vit', device='cpu').ensemble_weights.values()) == [1.]

def test_other_versions_are_said(copied, done):
    record(copied, lambda s: s['train']['versions'].update(torch='1.0'))
    with pytest.warns(UserWarning, match=r'torch 1.0 \(now'): P.load_run(copied, device='cpu')
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='the run was trained')
        P.load_run(done[0]/'run', device='cpu')

# --- the file

def test_the_file_is_whole_or_as_before(vit, some, tmp_path, monkeypatch):
    out = tmp_path/'deep'/'labels.csv'
    P.predict_csv(vit, some, out, progress=False)
    before = out.read_bytes()
    for error in (KeyboardInterrupt, RuntimeError):
        def stop(*args, **kwargs): raise error('stop')
        monkeypatch.setattr(P, 'label_table', stop)
        with pytest.raises(error): P.predict_csv(vit, some, out, progress=False)
        assert out.read_bytes() == before and os.listdir(out.parent) == ['labels.csv']
    monkeypatch.undo()
    P.predict_csv(vit, some/os.listdir(some)[0], out, progress=False)
    assert len(read_text(out)) == 1

@pytest.mark.parametrize('sign,status', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_leaves_the_file_as_it_was(done, tmp_path, sign, status):
    home, new, _ = done
    out, many = tmp_path/'to'/'labels.csv', tmp_path/'many'
    for folder in (out.parent, many): folder.mkdir()
    out.write_text('as before')
    for i, f in enumerate(sorted(new.iterdir())*5): os.link(f, many/f'{i}.jpg')
    line = [sys.executable, '-m', 'vision_ft.cli', 'predict', home/'run', many, '--out', out, '--tta', '--device', 'cpu']
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as p:
        while p.poll() is None and len(os.listdir(out.parent)) < 2: time.sleep(.02)
        p.send_signal(sign)
        said = p.stderr.read()
    assert p.returncode == status and 'Traceback' not in said and ('starts anew' in said) == (sign == signal.SIGINT)
    assert os.listdir(out.parent) == ['labels.csv'] and out.read_text() == 'as before'

def test_files_that_cannot_be_written(vit, some, tmp_path, monkeypatch):
    (tmp_path/'a.csv').mkdir()
    for out, words in ((tmp_path, 'is a folder'), (tmp_path/'a.csv', 'is a folder'), (some/'labels.txt', 'does not end in .csv'),
                       (sorted(some.iterdir())[0]/'x.csv', 'could not be written')):
        with pytest.raises(SettingsError, match=words): P.predict_csv(vit, some, out, progress=False)
    odd = os.fsdecode(os.fsencode(some)+b'/\xff.jpg')
    shutil.copy(sorted(some.iterdir())[0], odd)
    with pytest.raises(DataError, match='not in UTF-8'): P.predict_csv(vit, [odd], tmp_path/'x.csv', progress=False)
    os.unlink(odd)
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(pd.DataFrame, 'to_csv', full)
    with pytest.raises(SettingsError, match='disk is full'): P.predict_csv(vit, some, tmp_path/'x.csv', progress=False)
    assert not [f for f in tmp_path.iterdir() if f.is_file()]

def test_a_class_may_be_called_like_a_column():
    p = Preds(['a', 'b'], ['file', 'label', 'error'], [[.1, .2, .7], [.4, .3, .3]])
    t = P.label_table(p, probs=True)
    assert not t.columns.duplicated().any() and t['p(label)'].tolist() == pytest.approx([.2, .3])
    assert t.label.tolist() == ['error', 'file'] and t.runner_up.tolist() == ['label', 'label']

def test_memory_does_not_grow_with_the_number_of_images(done, tmp_path):
    "Ten times the files: the resident set at its peak grows by their names at most"
    home, new, _ = done
    files = sorted(new.iterdir())
    for name, n in (('few', 1000), ('many', 10_000)):
        (tmp_path/name).mkdir()
        for i in range(n): os.link(files[i%len(files)], tmp_path/name/f'{i:05}.jpg')
    code = '''
import resource, sys
from pathlib import Path
from vision_ft.classify.predict import load_run, predict_csv
tmp, run = Path(sys.argv[2]), load_run(sys.argv[1], model='convnext', device='cpu')
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
predict_csv(run, tmp/'few', tmp/'few.csv', progress=False)
before = peak()
assert predict_csv(run, tmp/'many', tmp/'many.csv', probs=True, progress=False) == (10_000, 0)
print(peak()-before)
'''
    got = subprocess.run([sys.executable, '-c', code, home/'run', tmp_path], capture_output=True, text=True)
    assert got.returncode == 0, got.stderr
    assert float(got.stdout) < 25, f'{got.stdout.strip()} MiB more' # all their pixels would be 30 MB, as floats 120
    assert len(read_text(tmp_path/'many.csv')) == 10_000

def test_photographs(photos, tmp_path):
    "A quick run on real photographs predicts their turned copies, which have other sizes and names"
    result = compete(photos/'rice'/'photos', tmp_path/'run', models=pd.DataFrame(read_models('tiny_photos')[:1]), epochs=1, progress=False, device='cpu')
    n, bad = P.predict_csv(tmp_path/'run', photos/'rice'/'rotated', tmp_path/'rotated.csv', tta=True, device='cpu', progress=False)
    t = read_text(tmp_path/'rotated.csv')
    assert bad == 0 and len(t) == n and set(t.label) <= set(result.preds.vocab)
    assert (t.file.str.split('/').str[0] == t.label).mean() > .4 # the three classes have about a third each
