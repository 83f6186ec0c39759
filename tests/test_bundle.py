"A bundle is whole and for Kaggle, refusals leave nothing, and a session's time costs models, not the submission"
import base64, dataclasses, hashlib, json, shutil, signal, subprocess, sys, time, zipfile
from pathlib import Path
import pandas as pd, pytest
from vision_ft.classify import bundle as B, settings as S
from vision_ft.classify.bundle import (bundle, bundle_notebook, check_files, collect_wheels, compete_within, missing_packages,
                                       predict_submission, read_bundle, read_image, run_until, time_limit, without_models, write_wheel)
from vision_ft.classify.compete import compete, predict_record, prepare, summary
from vision_ft.classify.settings import CompeteSettings, read_models, row_settings
from vision_ft.core import DataError, PretrainedError, SettingsError
from vision_ft.models import make_model, save_checkpoint
from vision_ft.data.tables import read_text
from vision_ft.runs import Run, fingerprint
from vision_ft.samples import digits
from test_kaggle import kaggle_server

@pytest.fixture(scope='module')
def data(tmp_path_factory): return digits(tmp_path_factory.mktemp('data')/'digits')

@pytest.fixture(scope='module')
def finished(tmp_path_factory, data):
    "The folder of a `compete` that has ended"
    out = tmp_path_factory.mktemp('finished')/'run'
    table = pd.DataFrame(dict(name=['a'], arch=['tiny_convnext'], epochs=['1'], pretrained=['tiny']))
    compete(data, out, models=table, flip=False, progress=False)
    return out

# --- wheels

def test_our_wheel_is_whole(root, tmp_path):
    "Every file of the package that git knows is in it, RECORD names each with its hash, and pip takes it without network"
    wheel = write_wheel('vision_ft', tmp_path)
    with zipfile.ZipFile(wheel) as z:
        held = {n: z.read(n) for n in z.namelist()}
    record = next(v for k, v in held.items() if k.endswith('.dist-info/RECORD')).decode().splitlines()
    hashes = dict(line.rsplit(',', 2)[:2] for line in record)
    assert hashes.keys() == held.keys()
    for name, said in hashes.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(held[name]).digest()).rstrip(b'=').decode()
        assert not said or said == f'sha256={digest}', name
    known = subprocess.run(['git', 'ls-files', 'vision_ft', 'data'], cwd=root, capture_output=True, text=True)
    if known.returncode: pytest.skip('not a git checkout')
    wanted = {f if f.startswith('vision_ft') else f'vision_ft/assets/{f[5:]}' for f in known.stdout.split()}
    assert wanted <= held.keys() and not any('.pyc' in n for n in held)
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-index', '--no-deps', '--target', tmp_path/'site', wheel], check=True)
    found = subprocess.run([sys.executable, '-c', 'import vision_ft.core as c; print(c.__file__, c.asset("presets", "tiny.csv"))'], cwd=tmp_path,
                           env={'PYTHONPATH': str(tmp_path/'site')}, capture_output=True, text=True, check=True).stdout.split()
    assert all(f.startswith(str(tmp_path)) for f in found)

def test_only_what_the_image_lacks_and_its_requirements(monkeypatch):
    needs = dict(vision_ft=['a>=2', 'b', 'c; python_version<"3.10"', 'torch>=2'], a=['d>1', 'a[x]', 'e; sys_platform=="win32"'], d=['a'])
    monkeypatch.setattr(B, 'requires', needs.get)
    monkeypatch.setattr(B, 'version', lambda p: '9.0')
    image = dict(torch='2.10.0+cpu', b='1')
    assert missing_packages({**image, 'a': '2.1'}) == {}
    assert missing_packages({**image, 'a': '1.9', 'd': '2'}) == {'a': '9.0'}
    assert missing_packages({**image, 'd': '1'}) == {'a': '9.0', 'd': '9.0'}
    with pytest.raises(SettingsError, match='(?s)torch 1.9.*Fix: choose the latest environment.*pip list --format=freeze'): missing_packages({**image, 'a': '3', 'torch': '1.9'})

def fake_wheel(folder, name):
    folder.mkdir(exist_ok=True)
    pkg, v = name.split('-')[:2]
    with zipfile.ZipFile(folder/name, 'w') as z:
        z.writestr(f'{pkg}-{v}.dist-info/METADATA', f'Metadata-Version: 2.1\nName: {pkg}\nVersion: {v}\n')
        z.writestr(f'{pkg}-{v}.dist-info/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: false\n')
    return folder/name

def test_compiled_packages_are_given_or_fetched_for_kaggle(tmp_path, monkeypatch):
    "numpy is compiled: its wheel comes from the folder, or from what pip finds, and is never one of another Python"
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_CONFIG_FILE', '/dev/null')
    monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path/'index'))
    wrong, right = 'numpy-1.0-cp311-cp311-manylinux_2_17_x86_64.whl', 'numpy-1.0-cp312-cp312-manylinux_2_17_x86_64.whl'
    fake_wheel(tmp_path/'given', wrong)
    with pytest.raises(SettingsError, match='(?s)no wheels of numpy==1.0.*pip download.*--wheels wheels'):
        collect_wheels(dict(numpy='1.0'), tmp_path/'w1', wheels=tmp_path/'given')
    fake_wheel(tmp_path/'index', right)
    collect_wheels(dict(numpy='1.0'), tmp_path/'w2')
    fake_wheel(tmp_path/'given', right)
    monkeypatch.delenv('PIP_FIND_LINKS')
    collect_wheels(dict(numpy='1.0'), tmp_path/'w3', wheels=tmp_path/'given')
    for w in ('w2', 'w3'): assert {o.name for o in (tmp_path/w).iterdir() if o.name.startswith('numpy')} == {right}

def test_a_list_of_the_image_is_a_list(tmp_path):
    (tmp_path/'i.txt').write_text('# x\nTorch==2.10.0+cpu\nmy_pkg @ file:///x\nhuggingface_hub==1.0\n')
    assert read_image(tmp_path/'i.txt') == {'torch': '2.10.0+cpu', 'huggingface-hub': '1.0'}
    (tmp_path/'i.txt').write_text('pandas==2\n')
    for path in (tmp_path/'i.txt', tmp_path/'none.txt'):
        with pytest.raises(SettingsError, match='pip list --format=freeze > image.txt'): read_image(path)

# --- the bundle

@pytest.mark.parametrize('change,error', [
    (dict(source='no_such_preset'), SettingsError), (dict(max_gb=1e-6), SettingsError), (dict(slug='A b'), SettingsError), (dict(hours=0), SettingsError), (dict(competition='Digit Recognizer'), SettingsError), (dict(nonsense=1), SettingsError),
    (dict(source='lost.csv'), PretrainedError), (dict(compete=CompeteSettings(views=['plain', 'nonsense'])), SettingsError), (dict(image='nowhere.txt'), SettingsError), (dict(source='.'), DataError)])
def test_a_refusal_leaves_nothing(tmp_path, monkeypatch, change, error):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(make_model('test_vit', 2), tmp_path/'w.safetensors')
    (tmp_path/'fine.csv').write_text('name,arch,size,pretrained\nx,test_vit,64,w.safetensors\n')
    (tmp_path/'lost.csv').write_text('name,arch,pretrained\nx,test_vit,gone.safetensors\n')
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(error): bundle(**{'source': 'fine.csv', 'out': tmp_path/'out', **change})
    assert sorted(tmp_path.rglob('*')) == before

def test_a_folder_with_something_in_it_is_kept(tmp_path):
    (tmp_path/'mine.txt').write_text('mine')
    with pytest.raises(SettingsError, match='not empty'): bundle('tiny', tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['mine.txt']

@pytest.mark.parametrize('form', [dict, pd.Series, lambda g: pd.DataFrame(dict(id=list(g), group=list(g.values()))), lambda g: 'groups.csv'])
def test_groups_in_any_form_travel(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    Path('groups.csv').write_text('id,group\n007.jpg,g\n8.jpg,g\n9.jpg,\n')
    bundle('tiny', 'b', user='me', compete=CompeteSettings(flip=False, groups=form({'007.jpg': 'g', '8.jpg': 'g'})))
    assert Path(read_bundle('b/dataset').groups).read_text().split() == ['id,group', '007.jpg,g', '8.jpg,g']

def test_weights_travel_and_settings_come_back(tmp_path, monkeypatch):
    "Own and hub weights are files of the bundle, whose table names them there, wherever it is mounted"
    mine = save_checkpoint(make_model('test_vit', 2), tmp_path/'w.safetensors')
    monkeypatch.setattr(S, 'preflight', lambda *args, **kwargs: dict(params_m=0))
    monkeypatch.setattr(B, 'fetch_pretrained', lambda arch: mine)
    (tmp_path/'m.csv').write_text(f'name,arch,size,pretrained,args\na,test_vit,64,{mine},"{{""drop_path_rate"": 0.1}}"\nb,test_vit,64,hub,\nc,tiny_vit,32,tiny,\nd,test_vit,64,,\n')
    bundle(tmp_path/'m.csv', tmp_path/'b', user='me', compete=CompeteSettings(flip=False, seed=7, views=['plain', 'hflip']))
    (tmp_path/'b').rename(tmp_path/'elsewhere')
    s = read_bundle(tmp_path/'elsewhere'/'dataset')
    assert (s.flip, s.seed, s.views) == (False, 7, ['plain', 'hflip']) and s.groups is None
    rows = {r['name']: row_settings(r) for r in read_models(s.models)}
    here = tmp_path/'elsewhere'/'dataset'/'weights'
    assert [rows[n].pretrained for n in 'abcd'] == [str(here/'a.safetensors'), str(here/'b.safetensors'), 'tiny', None]
    assert rows['a'].model_args == dict(drop_path_rate=.1) and (here/'a.safetensors').read_bytes() == mine.read_bytes()

def interrupted(run):
    "As Ctrl-C leaves a `compete`: the second model has begun, nothing is collected"
    for f in ('runs.csv', 'submission.csv', 'report.html'): (run/f).unlink()
    shutil.copytree(run/'runs'/'a', run/'runs'/'b')

def lost_weights(run): next(run.glob('runs/a/checkpoints/*')).unlink()

def failed_retrain(run):
    record = json.loads((run/'runs'/'a'/'run.json').read_text())
    record['stages']['train'] = {k: v for k, v in record['stages']['train'].items() if k != 'seconds'} | dict(status='failed')
    (run/'runs'/'a'/'run.json').write_text(json.dumps(record))

@pytest.mark.parametrize('spoil,says', [(interrupted, '(?s)has not ended.*Fix: start it again'), (lost_weights, "weights of 'a' are gone"),
                                        (failed_retrain, "training of 'a' .* is not done; it is failed")])
def test_an_unfinished_run_is_not_bundled(tmp_path, finished, spoil, says):
    spoil(run := shutil.copytree(finished, tmp_path/'run'))
    with pytest.raises((DataError, PretrainedError), match=says): bundle(run, tmp_path/'b')
    assert not (tmp_path/'b').exists()

def test_options_of_a_table_are_refused_for_a_run(tmp_path, finished):
    with pytest.raises(SettingsError, match='without epochs, seed'):
        bundle(finished, tmp_path/'b', compete=CompeteSettings(epochs=3, seed=1))
    with pytest.raises(SettingsError, match='without hours'): bundle(finished, tmp_path/'b', hours=2)
    assert not (tmp_path/'b').exists()

def test_a_preset_is_a_preset_beside_a_folder_of_its_name(tmp_path, finished, monkeypatch):
    "Data or a run in ./tiny: `tiny` is the preset, ./tiny the folder"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, 'tiny')
    kinds = [json.loads((tmp_path/out/'dataset'/'bundle.json').read_text())['kind'] for source, out in (('tiny', 'b'), ('./tiny', 'c')) if len(bundle(source, out))]
    assert kinds == ['table', 'run']

def test_test_images_suffice_and_a_broken_one_costs_no_submission(tmp_path, data, finished):
    "No training images beside them; one that can't be read gets the mean of the others, and a warning"
    bundle(finished, tmp_path/'b')
    shutil.copytree(data, tmp_path/'data', ignore=shutil.ignore_patterns('train*', 'solution.csv'))
    run, want = tmp_path/'b'/'dataset'/'run', read_text(finished/'submission.csv')
    assert read_text(predict_submission(run, tmp_path/'data', tmp_path/'s.csv', progress=False)).equals(want)
    (tmp_path/'data'/'test_images'/want.iloc[5, 0]).write_bytes(b'no image')
    with pytest.warns(UserWarning, match=f'(?s)1 of 360 images cannot be read: .*{want.iloc[5, 0]}.*They get the mean of the others'):
        got = read_text(predict_submission(run, tmp_path/'data', tmp_path/'s.csv', progress=False))
    assert got.drop(5).equals(want.drop(5)) and got.iloc[5, 0] == want.iloc[5, 0] and got.iloc[5, 1] in want.label.value_counts().index[:3]
    shutil.rmtree(tmp_path/'data'/'test_images')
    with pytest.raises(DataError, match='no test images'): predict_submission(run, tmp_path/'data', tmp_path/'s.csv')

def test_a_broken_upload_is_noticed(tmp_path):
    bundle('tiny', tmp_path/'b')
    check_files(tmp_path/'b'/'dataset')
    wheel = next((tmp_path/'b'/'dataset'/'wheels').glob('fastcore*'))
    wheel.write_bytes(wheel.read_bytes()[:-1])
    with pytest.raises(DataError, match=r'1 file changed \(wheels/fastcore'): check_files(tmp_path/'b'/'dataset')
    wheel.unlink()
    with pytest.raises(DataError, match=r'1 file missing \(wheels/fastcore'): check_files(tmp_path/'b'/'dataset')

def test_kaggles_own_client_takes_the_metadata(tmp_path, kaggle_server, capsys):
    "The notebook is pushed with its sources, internet off; the title resolves to its short name"
    from kaggle.api.kaggle_api_extended import KaggleApi
    bundle('tiny', tmp_path/'b', user='me', competition='digits')
    api = KaggleApi()
    api.authenticate()
    api.kernels_push(str(tmp_path/'b'/'notebook'))
    name, sent = kaggle_server['got'][-1]
    assert name == 'SaveKernel' and 'does not resolve' not in capsys.readouterr().out
    assert sent['datasetDataSources'] == ['me/vision-ft-bundle'] and sent['competitionDataSources'] == ['digits']
    assert not sent['enableInternet'] and sent['isPrivate'] and sent['kernelType'] == 'notebook'
    meta = json.loads((tmp_path/'b'/'dataset'/'dataset-metadata.json').read_text())
    assert 6 <= len(meta['title']) <= 50 and 6 <= len(meta['id'].split('/')[1]) <= 50 and len(meta['licenses']) == 1

@pytest.mark.parametrize('competition,mount', [('digits', 'digits'), ('digits', 'competitions/digits'), (None, 'competitions/digits/unpacked')])
def test_what_is_attached_is_found_at_any_depth(tmp_path, monkeypatch, competition, mount):
    "Kaggle's mounts moved over time; an earlier output with a file of the competition's name doesn't mislead"
    monkeypatch.setenv('VISION_FT_INPUT', str(tmp_path))
    find = bundle_notebook('table', competition)['cells'][1]['source']
    with pytest.raises(FileNotFoundError, match='data set of the bundle'): exec(find, {})
    (tmp_path/'datasets'/'me'/'b').mkdir(parents=True)
    (tmp_path/'datasets'/'me'/'b'/'bundle.json').touch()
    (tmp_path/'datasets'/'me'/'digits').touch()
    with pytest.raises(FileNotFoundError, match='the competition .* is not attached'): exec(find, {})
    (tmp_path/mount/'test_images').mkdir(parents=True)
    exec(find, found := {})
    assert (found['DATA'], found['BUNDLE']) == (tmp_path/mount, tmp_path/'datasets'/'me'/'b')

# --- the time of a session

class Clock:
    "A clock that only models move: each takes its seconds, and leaves the record of a run"
    def __init__(self, **seconds): self.now, self.seconds, self.ran = 0., seconds, []
    def monotonic(self): return self.now
    def run_model(self, plan, name, progress):
        run = Run(plan.out/'runs'/name)
        if run.status: return run
        self.ran.append(name)
        self.now += self.seconds[name]
        if self.seconds[name] == 0: raise RuntimeError('out of memory')
        run.path.mkdir(parents=True)
        of = dict(train=plan.records[name], predict=predict_record(plan, name))
        stages = {k: dict(status='done', seconds=s, files=[], fingerprint=fingerprint(of[k])) for k, s in dict(train=self.seconds[name]-1, predict=1).items()}
        (run.path/'run.json').write_text(json.dumps(dict(stages=stages)))

def run_with(monkeypatch, plan, clock, end):
    monkeypatch.setattr(B, 'time', clock)
    monkeypatch.setattr(B, 'run_model', clock.run_model)
    return run_until(plan, end, progress=False)

TABLE = pd.DataFrame(dict(name=['a', 'b', 'c'], arch='tiny_convnext', epochs=['1', '1', '1'], ensemble_weight=['2', '1', '1'], pretrained='tiny'))

@pytest.fixture(scope='module')
def prepared(tmp_path_factory, data): return prepare(data, tmp_path_factory.mktemp('prepared')/'o', CompeteSettings(models=TABLE, flip=False))

@pytest.fixture
def plan(tmp_path, prepared): return dataclasses.replace(prepared, out=tmp_path)

@pytest.mark.parametrize('seconds,end,dropped', [
    (dict(a=10, b=10, c=10), 31, {}), (dict(a=10, b=10, c=10), 29, dict(c='needs about 10 s, 9 s were left')),
    (dict(a=5, b=20, c=10), 44, dict(c='needs about 20 s, 19 s were left')), (dict(a=10, b=0, c=10), 31, dict(b='RuntimeError: out of memory')),
    (dict(a=50, b=1, c=1), 40, dict(b='needs about 50 s, 0 s were left', c='needs about 50 s, 0 s were left'))])
def test_the_last_models_are_dropped(plan, monkeypatch, seconds, end, dropped):
    assert run_with(monkeypatch, plan, Clock(**seconds), end) == dropped

def test_epochs_count(plan, monkeypatch):
    epochs = {k: dataclasses.replace(t, epochs=e) for (k, t), e in zip(plan.trainings.items(), (1, 3, 2))}
    long = dataclasses.replace(plan, models=dataclasses.replace(plan.models, trainings=epochs))
    assert run_with(monkeypatch, long, Clock(a=10, b=20, c=20), 39) == dict(b='needs about 30 s, 29 s were left')

def test_a_later_session_goes_on(plan, monkeypatch):
    assert list(run_with(monkeypatch, plan, Clock(a=10, b=10, c=10), 25)) == ['c']
    later = Clock(a=10, b=10, c=10)
    assert run_with(monkeypatch, plan, later, 25) == {} and later.ran == ['c']

def test_what_is_done_needs_no_time(plan, monkeypatch):
    "A session that only collects, or whose time is over: finished models are not dropped"
    assert run_with(monkeypatch, plan, Clock(a=10, b=10, c=10), 99) == {}
    assert run_with(monkeypatch, plan, Clock(), -1) == {}

def test_a_failed_training_tells_no_time(plan, monkeypatch):
    run_with(monkeypatch, plan, Clock(a=10, b=20, c=10), 99)
    file = plan.out/'runs'/'b'/'run.json'
    record = json.loads(file.read_text())
    record['stages']['train'] = dict(status='failed')
    file.write_text(json.dumps(record))
    assert B._expected_seconds(plan, 'c') == 10

@pytest.mark.parametrize('error', [B.TimeUp, RuntimeError])
def test_the_submission_comes_before_baselines_and_report(tmp_path, data, finished, monkeypatch, error):
    run = shutil.copytree(finished, tmp_path/'run')
    (run/'submission.csv').unlink()
    def stopped(plan):
        assert (plan.out/'submission.csv').exists()
        raise error('in the baselines')
    monkeypatch.setattr('vision_ft.classify.compete.run_baselines', stopped)
    with pytest.warns(UserWarning, match=f'baselines and report are left out: {error.__name__}: in the baselines'):
        result = compete_within(data, run, models=run/'models.csv', flip=False, progress=False, hours=.1)
    assert result.baselines == [] and (run/'submission.csv').read_text() == (finished/'submission.csv').read_text() and summary(result)

def test_a_model_that_is_too_slow_is_stopped(plan, monkeypatch):
    monkeypatch.setattr(B, 'run_model', lambda plan, name, progress: time.sleep(60))
    start = time.monotonic()
    got = run_until(plan, start+1)
    assert got['a'].startswith('TimeUp: stopped after') and '0 s were left' in got['c'] and time.monotonic()-start < 20

def test_weights_of_the_rest(plan):
    rest = without_models(plan, ['c'])
    assert rest.ensemble_weights == dict(a=2/3, b=1/3) and list(rest.trainings) == list(rest.records) == ['a', 'b']
    assert [r.name for r in rest.runs] == ['a', 'b'] and len(plan.trainings) == 3

def test_the_alarm_passes_those_who_swallow_errors():
    with pytest.raises(B.TimeUp), time_limit(.05):
        for _ in range(3):
            try: time.sleep(1)
            except Exception: pass # as where images are read

def test_the_alarm_is_set_back():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(B.TimeUp), time_limit(.05): time.sleep(2)
    with time_limit(5): pass
    assert signal.getsignal(signal.SIGALRM) == before and signal.getitimer(signal.ITIMER_REAL) == (0, 0)
