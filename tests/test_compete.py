"A whole run: what it refuses, and that a run killed at any moment finishes as if it had not been."
import json, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest
from PIL import Image
from vision_ft.classify import compete as C
from vision_ft.core import DataError, SettingsError, VisionFTError
from vision_ft.classify.settings import COLUMNS, read_models, row_settings
from vision_ft.samples import digits

MODELS = pd.DataFrame([dict(name=n, arch=a, item='squish 32', size=32, effective_bs=64, accum=2, epochs=1, lr=.004) for n, a in (('convnext', 'tiny_convnext'), ('vit', 'tiny_vit'))])

@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "Three digits, 40 images each to train and 10 each to predict, in the shape of a competition"
    full, d = digits(tmp_path_factory.mktemp('full')/'digits'), tmp_path_factory.mktemp('small')/'data'
    train, test = (pd.read_csv(full/f, dtype=str) for f in ('train.csv', 'solution.csv'))
    train = train[train.label.isin(['0', '1', '2'])].groupby('label').head(40)
    test = test[test.label.isin(['0', '1', '2'])].groupby('label').head(10)
    for r in train.itertuples():
        (d/'train_images'/r.label).mkdir(parents=True, exist_ok=True)
        shutil.copy(full/'train_images'/r.label/r.image_id, d/'train_images'/r.label)
    (d/'test_images').mkdir()
    for i in test.image_id: shutil.copy(full/'test_images'/i, d/'test_images')
    train.to_csv(d/'train.csv', index=False); test.to_csv(d/'solution.csv', index=False)
    test.assign(label='0').to_csv(d/'sample_submission.csv', index=False)
    return d

@pytest.fixture
def data(small, tmp_path): return Path(shutil.copytree(small, tmp_path/'data'))

def first(folder): return sorted(folder.rglob('*.jpg'))[0]
def no_images(d): shutil.rmtree(d/'train_images'); (d/'train_images').mkdir(); (d/'train.csv').unlink()
def one_class(d):
    for l in '12': shutil.rmtree(d/'train_images'/l)
    (d/'train.csv').unlink()
def broken_train(d): first(d/'train_images').write_bytes(first(d/'train_images').read_bytes()[:300])
def broken_test(d): first(d/'test_images').write_bytes(b'not an image')
def sample_lacks(d): pd.read_csv(d/'sample_submission.csv', dtype=str)[1:].to_csv(d/'sample_submission.csv', index=False)
def sample_twice(d): s = pd.read_csv(d/'sample_submission.csv', dtype=str); pd.concat([s, s[:1]]).to_csv(d/'sample_submission.csv', index=False)
def train_twice(d): s = pd.read_csv(d/'train.csv', dtype=str); pd.concat([s, s[:1]]).to_csv(d/'train.csv', index=False)
def strange_truth(d): s = pd.read_csv(d/'solution.csv', dtype=str); s.assign(label='NA').to_csv(d/'solution.csv', index=False)
def nothing(d): pass

@pytest.mark.parametrize('break_it,kwargs,says', [
    (no_images, {}, 'no image'), (one_class, {}, 'label'), (broken_train, {}, 'cannot be read'), (broken_test, {}, 'cannot be read'),
    (sample_lacks, {}, '1 files without an id'), (sample_twice, {}, '1 duplicate ids'), (train_twice, {}, 'repeat an id'),
    (nothing, dict(models=MODELS.assign(arch='convnext_smal')), 'convnext_small'), (nothing, dict(models='auto', arch='convnext_smal'), 'convnext_small'),
    (nothing, dict(arch='tiny_vit'), 'the same thing twice'), (nothing, dict(lr=-1), 'lr must be'), (nothing, dict(size='big'), 'not a size'),
    (nothing, dict(models=MODELS.assign(arch='test_convnext', pretrained='hub')), 'HF_H'),
    (nothing, dict(models=MODELS.assign(pretrained='/nowhere/w.safetensors')), '/nowhere/w.safetensors'),
    (nothing, dict(ensemble_weights={'vitt': 2}), "'vitt' does not exist"), (nothing, dict(models='tini'), 'tiny'),
    (nothing, dict(models=MODELS.assign(item='squash 32')), 'squish'), (nothing, dict(models=MODELS.assign(size='big')), 'not a size'),
    (nothing, dict(models=MODELS.assign(effective_bs='many')), 'many'), (nothing, dict(models=MODELS.assign(epochs=0)), 'epochs must be'),
    (nothing, dict(models=MODELS.assign(args='{"drop_path_ratee": 1}')), 'drop_path_ratee'), (nothing, dict(models=MODELS.assign(name='a/b')), 'folder'), (strange_truth, {}, 'no training image has'), (nothing, dict(models=pd.concat([MODELS, MODELS])), 'different names'),
    (nothing, dict(models=MODELS[:1].assign(size='32x48'), views='above'), 'on their side'),
    (nothing, dict(views=['plain', 'hflop']), 'hflip'), (nothing, dict(seed=-1), 'seed must be'), (nothing, dict(num_workers=-1), 'num_workers must be'),
    (nothing, dict(groups=pd.DataFrame(dict(file=['a'], plant=[1]))), 'lacks id, group'), (nothing, dict(groups={'a.jpg': 1}), 'none of the images'), (nothing, dict(k=100), 'fold'), (nothing, dict(device='tpu'), 'tpu')])
def test_refused_before_any_training(data, tmp_path, break_it, kwargs, says, monkeypatch):
    monkeypatch.setenv('HF_HOME', str(tmp_path/'hf')); monkeypatch.setattr(C, 'train', lambda *a, **k: pytest.fail('training began'))
    break_it(data)
    with pytest.raises(VisionFTError) as e: C.compete(data, tmp_path/'out', **{'models': MODELS, 'progress': False, **kwargs})
    assert says in str(e.value) and 'Fix:' in str(e.value)
    assert not (tmp_path/'out').exists() # so the same command can be given again, mended

def test_full_disk_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: SimpleNamespace(free=10**6))
    with pytest.raises(SettingsError, match='1 MB free'): C.compete(data, tmp_path/'out', models=MODELS, progress=False)

GO = 'import sys, pandas as pd; from vision_ft.classify.compete import compete; compete(sys.argv[1], sys.argv[2], models=pd.read_csv(sys.argv[3]), flip=False, progress=False)'

def stages(out): return {(f.parent.name, k): (s['status'], s['started']) for f in (out/'runs').glob('*/run.json') for k, s in json.loads(f.read_text())['stages'].items()}

@pytest.mark.parametrize('when', [('convnext', 'train'), ('vit', 'train'), ('vit', 'predict')])
def test_killed_run_finishes_as_if_it_had_not_been(small, tmp_path, when):
    MODELS.to_csv(tmp_path/'models.csv', index=False)
    out, whole = tmp_path/'out', tmp_path/'whole'
    args = lambda o: [sys.executable, '-c', GO, str(small), str(o), str(tmp_path/'models.csv')]
    p, end = subprocess.Popen(args(out)), time.time()+240
    while p.poll() is None and time.time() < end and stages(out).get(when, ('',))[0] != 'running': time.sleep(.005)
    p.send_signal(signal.SIGKILL); p.wait()
    before = stages(out)
    assert not (out/'submission.csv').exists()
    subprocess.run(args(out), check=True); subprocess.run(args(whole), check=True)
    after = stages(out)
    assert all(s == 'done' for s, _ in after.values())
    assert all(after[k] == v for k, v in before.items() if v[0] == 'done') # what was finished is not done again
    assert (out/'submission.csv').read_text() == (whole/'submission.csv').read_text()
    a, b = (C.Run(o/'runs'/'vit').preds('test_tta') for o in (out, whole))
    np.testing.assert_allclose(a.probs, b.probs, atol=1e-6)

# --- the same command again, with something changed

def lrs(*folders): return [C.Run(f/'runs'/'vit').settings('train')['lr'] for f in folders]

def test_other_options_are_refused_unless_they_are_meant(data, tmp_path):
    "Named field by field; nothing is touched; with retrain the old result is kept whole, and what hasn't changed isn't trained"
    out, kw = tmp_path/'out', dict(flip=False, progress=False)
    r = C.compete(data, out, models=MODELS, **kw)
    other = MODELS.assign(lr=[.004, .002])
    before, page = stages(out), (out/'report.html').read_bytes()
    with pytest.raises(SettingsError) as e: C.compete(data, out, models=other, **kw)
    assert 'vit: lr 0.004 → 0.002' in str(e.value) and 'convnext' not in str(e.value) and '--retrain' in e.value.fix
    assert stages(out) == before and (out/'report.html').read_bytes() == page and not (out/'before').exists()
    with pytest.warns(UserWarning, match='vit: trained again .*lr 0.004 → 0.002'): C.compete(data, out, models=other, retrain=True, **kw)
    kept, = (out/'before').glob('2*')
    after = stages(out)
    assert {k for k in after if after[k] != before[k]} == {('vit', 'train'), ('vit', 'predict')}
    assert lrs(kept, out) == [.004, .002] and stages(kept) == before
    assert pd.read_csv(kept/'runs.csv', index_col='name').test_tta_error['vit'] == r.table.test_tta_error['vit']
    from vision_ft.classify.predict import predict
    test = r.setup.comp.test
    np.testing.assert_allclose(predict(kept, test, tta=True, progress=False).probs, r.preds.probs, atol=1e-6)
    links = re.findall('href="([^"]+)"', (out/'report.html').read_text())
    assert all((out/o).resolve().is_file() for o in links) # of the mistakes
    C.compete(data, out, models=other, retrain=True, **kw) # again: nothing is left to be done
    assert stages(out) == after and len([*(out/'before').glob('2*')]) == 1

def test_a_killed_retraining_goes_on(data, tmp_path, monkeypatch):
    out, kw = tmp_path/'out', dict(flip=False, progress=False)
    C.compete(data, out, models=MODELS, **kw)
    def stop(*a, **k): raise KeyboardInterrupt
    other = MODELS.assign(lr=.002)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning):
        m.setattr(C, 'train', stop)
        C.compete(data, out, models=other, retrain=True, **kw)
    assert not (out/'runs.csv').exists() # the old result isn't that of this folder any more
    with pytest.warns(UserWarning): r = C.compete(data, out, models=other, retrain=True, **kw)
    assert set(lrs(*(out/'before').glob('2*'))) == {.004} and lrs(out) == [.002] and (out/'submission.csv').exists()

def test_interrupted_with_other_options_is_said_and_done_again(data, tmp_path, monkeypatch):
    from vision_ft.classify import train as T
    def stop(*a, **k): raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(T, 'halve_on_oom', stop)
        C.compete(data, tmp_path/'out', models=MODELS[:1], flip=False, progress=False)
    with pytest.warns(UserWarning, match='convnext: interrupted.*epochs 1 → 2'):
        C.compete(data, tmp_path/'out', models=MODELS[:1], epochs=2, flip=False, progress=False)
    assert not (tmp_path/'out'/'before').exists()

def test_another_image_keeps_the_models(data, tmp_path):
    "One training image retouched: the finished models are kept, and it is said; retraining is on purpose"
    out, kw = tmp_path/'out', dict(models=MODELS[:1], flip=False, progress=False)
    C.compete(data, out, **kw)
    before = stages(out)
    plan = C.prepare(data, out, C.CompeteSettings(models=MODELS[:1], flip=False))
    f = Path(plan.train.path[0])
    Image.eval(Image.open(f), lambda v: 255-v).save(f)
    with pytest.warns(UserWarning, match=f'convnext: kept.*1 changed .{plan.train.id[0]}'): C.compete(data, out, **kw)
    assert stages(out) == before
    with pytest.warns(UserWarning, match='convnext: trained again'): C.compete(data, out, retrain=True, **kw)
    assert stages(out)[('convnext', 'train')] != before[('convnext', 'train')]
    C.compete(data, out, **kw)

def test_images_that_come_and_go_leave_the_rest_as_it_was(data, tmp_path):
    "One removed and one added: said, the others keep their fold, nothing finished is trained again; new validation images are predicted"
    plain, out, kw = data/'train_images', tmp_path/'out', dict(models=MODELS[:1], flip=False, progress=False)
    C.compete(plain, out, **kw)
    before, split = stages(out), pd.read_csv(out/'split.csv', dtype=str).set_index('id').fold
    trained = C.prepare(plain, out, C.CompeteSettings(models=MODELS[:1], flip=False)).train
    Path(trained.path[0]).unlink()
    Image.new('RGB', (32, 32), (9, 99, 9)).save(plain/'0'/'new.png')
    with pytest.warns(UserWarning, match='convnext: kept as trained before .*1 added .0/new.png., 1 removed'): C.compete(plain, out, **kw)
    now = pd.read_csv(out/'split.csv', dtype=str).set_index('id').fold
    stay = split.index.intersection(now.index)
    assert (now[stay] == split[stay]).all() and stages(out)[('convnext', 'train')] == before[('convnext', 'train')]
    assert trained.id[0] not in now.index and 'submission.csv' in os.listdir(out)

def test_a_given_validation_set_is_the_validation_set(data, tmp_path):
    "train beside valid, as fast.ai lays them out: what is trained and validated on, what is held out, and what is written"
    root, labels = tmp_path/'parts', dict(pd.read_csv(data/'train.csv', dtype=str).set_index('image_id').label)
    for n, f in enumerate(sorted((data/'train_images').rglob('*.jpg'))):
        to = root/('valid' if n % 4 == 0 else 'train')/labels[f.name]
        to.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, to)
    r = C.compete(root, tmp_path/'out', models=MODELS[:1], flip=False, k=3, progress=False)
    n_valid = len(list((root/'valid').rglob('*.jpg')))
    fit, held = r.setup.train, r.setup.valid
    assert len(held) == n_valid and set(held.id.str.split('/').str[0]) == {'valid'} and set(fit.id.str.split('/').str[0]) == {'train'}
    assert f'{n_valid} in the given validation set' in (tmp_path/'out'/'report.html').read_text()
    split = pd.read_csv(tmp_path/'out'/'split.csv', dtype=str).set_index('id').fold
    assert set(split[held.id]) == {'0'} and set(split[fit.id]) == {'1'} and len(split) == len(fit)+len(held)
    before = stages(tmp_path/'out')
    C.compete(root, tmp_path/'out', models=MODELS[:1], flip=False, k=3, progress=False)
    assert stages(tmp_path/'out') == before

def test_unknown_truth_is_scored_on_validation(data, tmp_path):
    "As on Kaggle: no solution, no sample; and ids of test images that training images have too"
    for f in ('solution.csv', 'sample_submission.csv'): (data/f).unlink()
    for f in list((data/'test_images').iterdir()): shutil.copy(f, data/'test_images'/pd.read_csv(data/'train.csv', dtype=str).image_id[0]); break
    r = C.compete(data, tmp_path/'out', models=MODELS[:1], flip=False, progress=False)
    assert r.table.test_tta_error.isna().all() and r.table.valid_error.drop('ensemble').notna().all()
    assert 'on the validation images' in C.summary(r)
    assert pd.read_csv(tmp_path/'out'/'submission.csv', dtype=str).shape == (len(list((data/'test_images').iterdir())), 2)

def test_rice_photos(photos, tmp_path):
    "Real photographs of three diseases, look-alikes grouped: finishes, and no group is torn apart by the hold-out or the split"
    from vision_ft.data.splits import group_pairs, leaks
    pairs = pd.read_csv(photos/'rice'/'pairs.csv')
    pairs = pairs[(pairs.correlation >= .9) & pairs.a.str.startswith('photos/') & pairs.b.str.startswith('photos/')]
    groups = group_pairs(pairs[['a', 'b']].apply(lambda c: c.str.removeprefix('photos/')))
    src = MODELS[:1].assign(size=64, item='squish 96')
    r = C.compete(photos/'rice'/'photos', tmp_path/'out', models=src, groups=groups, k=4, progress=False)
    assert r.table.index.tolist()[:3] == ['convnext', 'ensemble', 'largest class']
    said = ' '.join(C.summary(r).split())
    assert 'counts a group as one' in said and ('luck of whole groups' in said or 'Nothing changed' in said)
    for name in ('holdout.csv', 'split.csv'): assert not len(leaks(pd.read_csv(tmp_path/'out'/name, dtype=str), groups))

# --- the table of models

FULL = dict(name='a', arch='tiny_vit', item='squish 64', size=64, effective_bs=16, accum=2, epochs=1, lr=.003, finetune=False,
            pretrained='tiny', ensemble_weight=2., args='{"drop_path_rate": 0.1}')

@pytest.mark.parametrize('column', [c for c in COLUMNS if c not in ('name', 'arch', 'micro_bs')])
@pytest.mark.parametrize('from_file', [False, True])
def test_a_cell_left_empty_is_the_default(column, from_file, tmp_path):
    "Two rows, one of them silent in a column: pandas makes the gap NaN and whole numbers fractions"
    table = pd.DataFrame([FULL, {k: v for k, v in FULL.items() if k != column} | dict(name='b')])
    if from_file: table.to_csv(tmp_path/'models.csv', index=False)
    full, silent = read_models(tmp_path/'models.csv' if from_file else table)
    assert column in full and column not in silent
    a, b = row_settings(full), row_settings(silent)
    usual = row_settings(dict(name='b', arch='tiny_vit'))
    if column != 'ensemble_weight':
        field = dict(args='model_args').get(column, column)
        want = getattr(usual, field)
        assert getattr(b, field) == want and getattr(a, field) != getattr(b, field)

def test_rows_with_and_without_pretrained_weights_run_together(data, tmp_path):
    mixed = pd.DataFrame([{**MODELS.iloc[0], 'pretrained': 'tiny'}, {**MODELS.iloc[1]}])
    r = C.compete(data, tmp_path/'out', models=mixed, flip=False, progress=False)
    assert [t.pretrained for t in r.setup.trainings.values()] == ['tiny', None]
    assert r.table.index.tolist() == ['convnext', 'vit', 'ensemble', *C.BASELINES, 'linear probe tiny_convnext 32']
    said, facts = ' '.join(C.summary(r).split()), C.run_facts(r.setup)
    assert 'convnext: ' in said and said.count('its probe') == 1 and re.match(r'\d+ of 30 test images are right; always the largest class would get 10\.', said)
    assert facts['models'] == 'convnext: tiny_convnext, 1 epochs, lr 0.004; vit: tiny_vit, 1 epochs, lr 0.004' and '--no-flip' in facts['command']
    assert r.baselines[-1].error < .2 and C.collect(r.setup).table.equals(r.table)

def test_what_the_images_can_tell_is_said_first(data, tmp_path):
    "With the test images where their truth is known, and with groups that name them too"
    comp = C.read_competition(data)
    train, test = (t.id[:2].tolist() for t in (comp.train, comp.test))
    for ids, line in ((train+test, '2 images lie in 1 group'), (test, 'Validation')):
        plan = C.prepare(data, tmp_path/str(len(ids)), C.CompeteSettings(models=MODELS, groups=pd.DataFrame(dict(id=ids, group=['a', 'a', 'b', 'b'][-len(ids):]))))
        said = '\n'.join(C.opening_words(plan))
        assert '96 images to train on, 24 for validation' in said and line in said
    assert all(re.search(f'{part}: .* between two models', said) for part in ('Validation', 'Test'))

def test_networks_of_the_hubs_cache_on_photos(photos, tmp_path, monkeypatch):
    "A network named in one word: its weights are found where a download leaves them, its frozen features stand beside it"
    import huggingface_hub
    from vision_ft.classify.predict import predict
    weights = photos.parent/'weights'/'tf_efficientnet_lite0.safetensors'
    if not weights.is_file(): pytest.skip(f'{weights} is not there: real pretrained weights lie beside the data')
    repo = tmp_path/'hub'/'models--timm--tf_efficientnet_lite0.in1k'
    for name in ('snapshots/0a1b', 'refs'): (repo/name).mkdir(parents=True)
    (repo/'refs'/'main').write_text('0a1b')
    (repo/'snapshots'/'0a1b'/'model.safetensors').symlink_to(weights.resolve())
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path/'hub'))
    for label in sorted((photos/'rice'/'photos').iterdir()):
        (tmp_path/'rice'/label.name).mkdir(parents=True)
        for f in sorted(label.iterdir())[:12]: shutil.copy(f, tmp_path/'rice'/label.name)
    r = C.compete(tmp_path/'rice', tmp_path/'out', arch='tf_efficientnet_lite0', size=96, epochs=1, effective_bs=8, k=3, holdout=.25, device='cpu', progress=False)
    assert not r.setup.says and r.setup.runs[0].settings('train')['pretrained'] == 'hub'
    assert r.baselines[-1].name == 'linear probe tf_efficientnet_lite0 96' and r.baselines[-1].error < r.baselines[0].error
    assert 'its probe' in C.summary(r) and len(predict(tmp_path/'out', tmp_path/'rice', progress=False)) == 36

@pytest.mark.parametrize('cell,says', [(dict(lr='fast'), 'fast'), (dict(epochs=1.5), 'whole number'), (dict(finetune='maybe'), 'finetune'),
                                       (dict(args='{'), 'JSON'), (dict(args='{"seed": 1}'), 'columns'), (dict(size='x'), 'size')])
def test_an_error_names_its_row(cell, says):
    with pytest.raises(SettingsError, match="row 'a' of the models table") as e: row_settings({**FULL, **cell})
    assert says in str(e.value) and 'Fix: ' in str(e.value)

# --- what is advised must work

def emu(data, n):
    "A class of `n` images beside the others, in a plain folder"
    plain = data/'train_images'
    (plain/'emu').mkdir(exist_ok=True)
    for i in range(n): Image.fromarray(np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(plain/'emu'/f'{i}.png')
    return plain

def test_add_images_and_start_again(data, tmp_path):
    "The same command, after the images were added that it asked for"
    go = lambda: C.prepare(emu(data, 4), tmp_path/'out', C.CompeteSettings(models=MODELS))
    with pytest.raises(DataError, match='add images'): go()
    assert not (tmp_path/'out').exists()
    emu(data, 14)
    plan = C.prepare(data/'train_images', tmp_path/'out', C.CompeteSettings(models=MODELS))
    assert (plan.train.label == 'emu').sum()+(plan.valid.label == 'emu').sum()+list(plan.comp.truth.values()).count('emu') == 14

def test_advised_options_are_taken(data, tmp_path):
    "Each `--option value` that a refusal names is followed, until the run is planned"
    from vision_ft.cli import parser
    options, plain = {}, emu(data, 4)
    for _ in range(5):
        args = parser().parse_args(['compete', str(plain), '--out', str(tmp_path/'out'), *sum(([k, v] for k, v in options.items()), [])])
        try: C.prepare(plain, tmp_path/'out', C.CompeteSettings(models=MODELS, k=args.folds, holdout=args.holdout)); break
        except DataError as e:
            said = dict(re.findall(r'(--[a-z-]+) ([\d.]+)', e.fix))
            assert said and said.items() - options.items(), f'{e} advises what was followed already: {options}'
            options.update(said)
    else: pytest.fail(f'followed {options} and still refused')
    assert (tmp_path/'out'/'split.csv').exists()

@pytest.mark.parametrize('workers', [None, 1])
def test_predictions_are_made_once(data, tmp_path, workers):
    kw = dict(models=MODELS[:1], flip=False, progress=False, num_workers=workers)
    C.compete(data, tmp_path/'out', **kw)
    before = stages(tmp_path/'out')
    C.compete(data, tmp_path/'out', **kw)
    assert stages(tmp_path/'out') == before

# --- settings and what they promise

def test_keywords_count_beside_settings_and_unknown_ones_are_named(data, tmp_path, monkeypatch):
    seen = []
    def stop(data, out, settings):
        seen.append(settings)
        raise InterruptedError
    monkeypatch.setattr(C, 'prepare', stop)
    with pytest.raises(InterruptedError): C.compete(data, tmp_path/'out', C.CompeteSettings(models='paddy', seed=7), epochs=3, flip=False)
    assert (seen[0].models, seen[0].seed, seen[0].epochs, seen[0].flip) == ('paddy', 7, 3, False)
    with pytest.raises(SettingsError, match="setting 'epoch' does not exist"): C.compete(data, tmp_path/'out', epoch=3)

def test_test_images_are_known_by_their_content(data, tmp_path):
    "Other pixels in files of the same size, as in BMP, are other images: predicted again"
    for f in (data/'test_images').iterdir():
        Image.open(f).convert('RGB').save(f.with_suffix('.bmp')); f.unlink()
    for name in ('solution.csv', 'sample_submission.csv'): (data/name).unlink()
    kw = dict(models=MODELS[:1], flip=False, progress=False)
    first = C.compete(data, tmp_path/'out', **kw).preds
    for f in (data/'test_images').iterdir(): Image.eval(Image.open(f), lambda v: 255-v).save(f)
    again, fresh = (C.compete(data, tmp_path/o, **kw).preds for o in ('out', 'fresh'))
    np.testing.assert_allclose(again.probs, fresh.probs, atol=1e-6)
    assert np.abs(again.probs-first.probs).max() > .05

def test_a_model_that_fits_nowhere_is_refused_before_the_first_is_trained(data, tmp_path, monkeypatch):
    from vision_ft.classify import train as T
    from vision_ft.planning import BudgetError
    def plan(arch, *args, **kwargs):
        if arch == 'tiny_vit': raise BudgetError('tiny_vit needs 999 MiB for 1 image at a time, the budget is 1.', '')
        return SimpleNamespace(micro_bs=8)
    monkeypatch.setattr(T, 'plan_micro_bs', plan)
    with pytest.raises(SettingsError, match='needs 999 MiB'): C.compete(data, tmp_path/'out', models=MODELS, micro_bs='auto', progress=False)
    assert not (tmp_path/'out').exists()

def test_args_may_be_a_dict():
    assert row_settings({**FULL, 'args': {'drop_path_rate': .1}}) == row_settings(FULL)

# --- images that were learned, and images that are the same

def images(folder): return sorted(folder.rglob('*.jpg'))

def laid_out(data, d, layout):
    "The digits as Kaggle lays them out, without CSV files, or in fast.ai's parts; the folders of training and of held-out images"
    if layout == 'Kaggle':
        for what in ('train_images', 'test_images'): shutil.copytree(data/what, d/what)
        return d/'train_images', d/'test_images'
    parts = ['train', 'train', layout]
    for k, f in enumerate(images(data/'train_images')):
        to = d/parts[k % len(parts)]/f.parent.name
        to.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, to)
    return d/'train', d/layout

@pytest.mark.parametrize('layout', ['Kaggle', 'test', 'valid'])
def test_what_was_learned_is_no_test_image(data, tmp_path, layout):
    "Moved there after the training, under other names: refused, and nothing is touched. Copied there: said"
    out, kw = tmp_path/'out', dict(models=MODELS[:1], flip=False, k=3, progress=False)
    train, held = laid_out(data, tmp_path/'d', layout)
    r = C.compete(tmp_path/'d', out, **kw)
    before, page = stages(out), (out/'report.html').read_bytes()
    for k, f in enumerate(map(Path, r.setup.train.path[:3])):
        to = held/f.parent.relative_to(train) if layout != 'Kaggle' else held
        shutil.copy(f, to/f'late_{k}.jpg')
    with pytest.warns(UserWarning, match='3 of .* byte for byte among the training images'): C.read_competition(tmp_path/'d')
    for f in r.setup.train.path[:3]: Path(f).unlink()
    with pytest.raises(SettingsError, match='held out now, though it learned them: 3'): C.compete(tmp_path/'d', out, **kw)
    assert stages(out) == before and (out/'report.html').read_bytes() == page

def test_names_that_test_images_share_with_training_images(data, tmp_path):
    "Kaggle's folders may each begin with 0.jpg: a change among the training images is told by their names alone"
    train, held = laid_out(data, tmp_path/'d', 'Kaggle')
    for k, f in enumerate(images(held)): f.rename(held/f'{k}.jpg')
    for k, f in enumerate(images(train)): f.rename(f.parent/f'{k}.jpg')
    kw = dict(models=MODELS[:1], flip=False, k=3, progress=False)
    r = C.compete(tmp_path/'d', tmp_path/'out', **kw)
    Path(r.setup.train.path[0]).unlink()
    with pytest.warns(UserWarning, match=rf'kept as trained before \(images: 1 removed \({r.setup.train.id[0]}\)\)'): C.compete(tmp_path/'d', tmp_path/'out', **kw)

def test_copies_count_alike_in_plan_and_compete(data, tmp_path):
    "As groups, with the same words; and they are named in terminal and report, with what else was noticed"
    from vision_ft.classify.plan import read_facts
    plain = data/'train_images'
    for k, f in enumerate(images(plain/'0')[:3]): shutil.copy(f, f.parent/f'copy_{k}.jpg')
    shutil.copy(images(plain/'0')[0], plain/'0'/'third.jpg')
    (plain/'0'/'raw').write_text('no image')
    s = C.CompeteSettings(models=MODELS[:1], flip=False)
    with pytest.warns(UserWarning, match='left out: 1 without a suffix'): setup = C.prepare(plain, tmp_path/'out', s)
    facts, words = read_facts(plain, s), C.image_words(setup)
    assert '7 copies in 3 groups are kept together: ' in words and 'copy_0.jpg' in words and '= 0/third.jpg' in words
    assert C.short_plan(facts.train, facts.valid, facts.test, facts.groups) in words
    assert words in '\n'.join(C.opening_words(setup))
    r = C.compete(plain, tmp_path/'out', s, progress=False)
    page = (tmp_path/'out'/'report.html').read_text()
    for said in ('7 copies in 3 groups', 'left out: 1 without a suffix (0/raw)'): assert said in page

def test_verdicts_on_baselines_say_both_ways_and_level(data, tmp_path):
    "Whoever is better is named; the same errors are level"
    from dataclasses import replace
    r = C.compete(data, tmp_path/'out', models=MODELS[:1], flip=False, progress=False)
    def said(ens, base): return C.verdicts(replace(r, ensemble=replace(ens, name='ensemble'), baselines=[replace(base, name='SVC')]))[0]
    truth = r.ensemble.targets
    right, wrong = (replace(r.ensemble, probs=np.asarray([v == np.roll(r.ensemble.vocab, k) for v in truth], float)) for k in (0, 1))
    assert (right.error, wrong.error) == (0, 1)
    assert said(right, wrong).endswith('fine-tuning beats the SVC.')
    assert 'fine-tuning is worse than the SVC; try' in said(wrong, right)
    for same in (right, wrong): assert said(same, same).endswith('level with the SVC.')

# --- a finished run needs nothing but its folder

def test_a_finished_run_is_collected_without_its_weights(data, tmp_path, monkeypatch):
    "Offline, on a machine without the hub's cache: with the table, and with the architecture alone; another model is refused"
    import huggingface_hub
    from test_settings import seed_cache
    arch = 'convnext_atto.d2_in1k'
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path/'hub'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    seed_cache(tmp_path/'hub', arch)
    kw = dict(arch=arch, size=32, epochs=1, effective_bs=16, flip=False, views=['plain', 'random1'], progress=False)
    r = C.compete(data, tmp_path/'out', **kw)
    before, table = stages(tmp_path/'out'), tmp_path/'out'/'models.csv'
    shutil.rmtree(tmp_path/'hub')
    again = C.compete(data, tmp_path/'out', **kw)
    assert again.table.equals(r.table) and stages(tmp_path/'out') == before
    with pytest.raises(VisionFTError, match='convnext_atto'): C.compete(data, tmp_path/'new', models=table, progress=False)
    with pytest.raises(VisionFTError, match='convnext_atto'): C.compete(data, tmp_path/'out', **{**kw, 'retrain': True, 'epochs': 2})
    assert stages(tmp_path/'out') == before

def test_a_cache_changes_nothing_but_the_time(data, tmp_path):
    "It is filled, read again by the next run, no part of what was asked, and refused among the images"
    kw = dict(models=MODELS, flip=False, progress=False)
    a = C.compete(data, tmp_path/'a', **kw)
    b = C.compete(data, tmp_path/'b', cache=tmp_path/'cache', **kw)
    pixels = [f for f in (tmp_path/'cache').rglob('*') if f.is_file()]
    assert len(pixels) == 150 and '--cache' in C.run_facts(b.setup)['command'] # both models read the same
    np.testing.assert_array_equal(a.preds.probs, b.preds.probs)
    before = stages(tmp_path/'a')
    C.compete(data, tmp_path/'a', cache=str(tmp_path/'cache'), **kw)
    assert stages(tmp_path/'a') == before
    for inside in (data, data/'train_images'/'kept'):
        with pytest.raises(SettingsError, match='lies in the folder of the data'): C.compete(data, tmp_path/'c', cache=inside, **kw)
    assert not (tmp_path/'c').exists()
