"A stage is done or it isn't: interrupts, full disks, killed processes; what identifies data and pretrained weights"
import errno, os, shutil, signal, subprocess, sys
from pathlib import Path
from types import SimpleNamespace
import pandas as pd, pytest
from vision_ft.core import DataError, SettingsError, atomic_path
from vision_ft.runs import Run, check_out, data_id, file_hash, keep_before, list_runs, pretrained_id, settle

no_room = OSError(errno.ENOSPC, 'No space left on device')

def raises(e):
    def f(*args, **kwargs): raise e
    return f

# --- stages

@pytest.mark.parametrize('error', [KeyboardInterrupt(), SystemExit(1), RuntimeError('shape'), MemoryError(), no_room], ids=repr)
def test_whatever_ends_a_stage_is_recorded(tmp_path, error):
    run = Run(tmp_path/'r')
    with pytest.raises(type(error)):
        with run.stage('train', dict(lr=1)): raise error
    record = run.info['stages']['train']
    assert record['status'] == 'failed' and record['error'].startswith(type(error).__name__) and record['ended'] and not run.is_done('train', dict(lr=1))

def test_facts_that_json_cannot_hold_end_a_stage(tmp_path):
    run = Run(tmp_path/'r')
    with pytest.raises(SettingsError, match='finite numbers'):
        with run.stage('train', {}) as facts: facts['error'] = float('nan')
    assert run.status == dict(train='failed')

@pytest.mark.parametrize('where', ['os.replace', 'os.fsync', 'pathlib.Path.touch', 'pathlib.Path.write_text'])
@pytest.mark.parametrize('body', [None, RuntimeError('shape')], ids=['done', 'failed'])
def test_a_disk_full_at_the_end_leaves_no_running(tmp_path, monkeypatch, where, body):
    run = Run(tmp_path/'r')
    with run.stage('first', {}): pass
    with monkeypatch.context() as m, pytest.raises(SettingsError if body is None else RuntimeError, match='disk is full' if body is None else 'shape'):
        with run.stage('train', dict(lr=1)):
            m.setattr(where, raises(no_room))
            if body: raise body
    assert run.status == dict(first='done', train='failed')
    assert sorted(o.name for o in run.path.iterdir()) == ['.lock', 'run.json'] # no temporary file
    with run.stage('train', dict(lr=1)): pass
    assert run.is_done('train', dict(lr=1))

@pytest.mark.parametrize('where', ['os.replace', 'os.fsync', 'pathlib.Path.touch'])
def test_a_disk_full_at_the_start_changes_nothing(tmp_path, monkeypatch, where):
    run = Run(tmp_path/'r')
    with run.stage('train', dict(lr=1)): pass
    with monkeypatch.context() as m, pytest.raises(SettingsError, match='disk is full'):
        m.setattr(where, raises(no_room))
        with run.stage('train', dict(lr=2)): pytest.fail('work began')
    assert run.is_done('train', dict(lr=1))

def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path/'file').write_text('x')
    with pytest.raises(SettingsError, match='choose another folder'):
        with Run(tmp_path/'file'/'r').stage('train', {}): pass
    monkeypatch.setattr('pathlib.Path.mkdir', raises(PermissionError(errno.EACCES, 'Permission denied')))
    with pytest.raises(SettingsError, match='Permission denied'):
        with Run(tmp_path/'r').stage('train', {}): pass

real_disk = '''
import os, sys
from vision_ft.core import SettingsError, atomic_path
from vision_ft.runs import Run
run = Run('r')
try:
    with run.stage('train', {}):
        with open('r/large', 'wb', buffering=0) as f:
            while True: f.write(bytes(4096))
except OSError: print(run.status['train'], sorted(os.listdir('r')))
os.remove('r/large')
try:
    with atomic_path('x') as tmp: tmp.write_bytes(bytes(2**20))
except SettingsError as e: print(e.wrong, os.listdir('.'))
'''

def test_on_a_disk_that_is_full(tmp_path):
    "On a file system of 64 KiB, where a user may mount one"
    if sys.platform != 'linux' or not shutil.which('unshare'): pytest.skip('needs unshare')
    mount = ['unshare', '-rm', 'sh', '-c', 'mount -t tmpfs -o size=64k none "$0" && cd "$0" && exec "$@"', str(tmp_path)]
    if subprocess.run([*mount, 'true'], capture_output=True).returncode: pytest.skip('no right to mount')
    root = str(Path(__file__).resolve().parent.parent)
    got = subprocess.run([*mount, sys.executable, '-c', real_disk], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': root})
    assert got.stdout.splitlines() == ["failed ['.lock', 'large', 'run.json']", "x could not be written: the disk is full. ['r']"], got.stderr

def test_a_killed_process_leaves_running_and_no_lock(tmp_path):
    code = f"from vision_ft.runs import Run; import time\nwith Run({str(tmp_path/'r')!r}).stage('train', {{}}): print('at work', flush=True); time.sleep(60)"
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline() == 'at work\n'
    run = Run(tmp_path/'r')
    with pytest.raises(SettingsError, match='another process'):
        with run.stage('train', {}): pass
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert run.status == dict(train='running') and not run.is_done('train', {})
    with run.stage('train', {}): pass
    assert run.is_done('train', {})

@pytest.mark.parametrize('text', ['{"stages": {"tr', '[]', '{}', '3', ''])
def test_a_damaged_record_says_what_to_do(tmp_path, text):
    run = Run(tmp_path/'r')
    run.path.mkdir()
    (run.path/'run.json').write_text(text)
    with pytest.raises(DataError, match='remove .*r to run it again'): run.is_done('train', {})
    shutil.rmtree(run.path)
    with run.stage('train', {}): pass
    assert run.is_done('train', {})

def test_a_run_of_other_files_is_not_done(tmp_path):
    run = Run(tmp_path/'r')
    with run.stage('train', {}):
        (run.path/'a').mkdir()
        (run.path/'a'/'b').write_text('x')
    with run.stage('predict', {}): (run.path/'c').write_text('x')
    assert [run.info['stages'][k]['files'] for k in ('train', 'predict')] == [['a/b'], ['c']]
    (run.path/'a'/'b').unlink()
    assert not run.is_done('train', {}) and run.is_done('predict', {})
    assert list_runs(tmp_path).train.tolist() == ['done']

# --- identity

@pytest.fixture
def table(tmp_path):
    for i in range(3): (tmp_path/f'{i}.jpg').write_bytes(bytes([i]))
    return pd.DataFrame(dict(id=[f'{i}.jpg' for i in range(3)], label=['a', 'b', 'a'], path=[str(tmp_path/f'{i}.jpg') for i in range(3)]))

def test_data_id_sees_ids_labels_content_and_split_but_no_order(table, tmp_path):
    assert data_id(table.iloc[[2, 0, 1]]) == data_id(table)
    others = [table[:2], table.assign(label='a'), table.assign(id=list('xyz'))]
    ids = {data_id(table), *map(data_id, others), data_id(table[:1], table[1:]), data_id(table[:2], table[2:])}
    assert len(ids) == 6
    shutil.copytree(tmp_path, tmp_path/'moved', ignore=lambda *a: ['moved'])
    assert data_id(table.assign(path=[str(tmp_path/'moved'/i) for i in table.id])) == data_id(table)
    before = data_id(table)
    (tmp_path/'1.jpg').write_bytes(b'12') # another size: noticed whatever the clock says
    assert data_id(table) != before

def test_data_id_of_names_that_are_not_utf8(table, tmp_path):
    name = os.fsdecode(b'caf\xe9.jpg')
    os.rename(tmp_path/'0.jpg', tmp_path/name)
    odd = table.astype(object).assign(id=pd.Series([name, *table.id[1:]], dtype=object), path=pd.Series([str(tmp_path/name), *table.path[1:]], dtype=object))
    assert len(data_id(odd)) == 12 and data_id(odd) != data_id(odd[1:])

def test_a_missing_file_is_named(table, tmp_path):
    (tmp_path/'2.jpg').unlink()
    with pytest.raises(DataError, match='no file .*2.jpg'): data_id(table)

def test_pretrained_id_goes_by_content(tmp_path):
    assert [pretrained_id(o) for o in (None, 'hub', 'tiny')] == [None, 'hub', 'tiny']
    for name in 'ab': (tmp_path/name).write_bytes(b'same')
    a, b = pretrained_id(tmp_path/'a'), pretrained_id(str(tmp_path/'b'))
    assert a[0] == 'a' and b[0] == 'b' and a[1:] == b[1:] == f' {file_hash(tmp_path/"a")[:12]}'

def test_outputs_need_a_folder_of_their_own_with_room(tmp_path, monkeypatch):
    check_out(tmp_path/'new'/'deep', tmp_path/'data')
    (tmp_path/'file').touch()
    for out, says in ((tmp_path/'file', 'is a file'), (tmp_path, 'folder of the data'), (tmp_path/'x'/'..', 'folder of the data'), (tmp_path/'runs', 'lies in it')):
        with pytest.raises(SettingsError, match=says): check_out(out, tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: SimpleNamespace(free=10**7))
    with pytest.raises(SettingsError, match='about 20 MB, and .* has 10 MB free'): check_out(tmp_path/'new', tmp_path/'data', need_mb=20)

# --- the same command again

RECORD = dict(arch='vit', lr=.01, data='then', device='cpu')
IMAGES = pd.DataFrame([('train', 'a', 'cat', 'h1'), ('train', 'b', 'dog', 'h2'), ('valid', 'c', 'cat', 'h3')], columns=['part', 'id', 'label', 'hash'])
CHANGES = [({}, IMAGES, 'kept', ''),
           (dict(lr=.02), IMAGES, 'refused', 'lr 0.01 → 0.02'),
           (dict(data='now'), IMAGES[1:], 'kept', '1 removed (a)'),
           (dict(data='now'), pd.concat([IMAGES, IMAGES[:1].assign(id='d', hash='h4')]), 'kept', '1 added (d)'),
           (dict(data='now'), IMAGES.assign(label='cat'), 'kept', '1 relabelled (b)'),
           (dict(data='now', device='cuda'), IMAGES.assign(hash=['h1', 'x', 'h3']), 'kept', 'device cpu → cuda, images: 1 changed (b)'),
           (dict(data='now'), IMAGES.assign(part=['valid', 'train', 'valid']), 'refused', 'though it learned them: 1'),
           (dict(data='now', lr=.02), IMAGES[1:], 'refused', '1 removed (a)')]

@pytest.mark.parametrize('change,images,fate,words', CHANGES)
def test_what_changed_decides(tmp_path, change, images, fate, words):
    "Without retrain kept or refused; with it trained again; whatever differs is said"
    run, now = Run(tmp_path/'vit'), {**RECORD, **change}
    with run.stage('train', RECORD): pass
    IMAGES.to_csv(tmp_path/'then.csv', index=False)
    ask = lambda **kw: settle([run], dict(vit=now), images, tmp_path, **kw)
    if fate == 'refused':
        with pytest.raises(SettingsError) as e: ask()
        assert words in str(e.value) and '--retrain' in e.value.fix
    else:
        kept = ask()
        assert kept.records == dict(vit=RECORD) and not kept.again and words in ' '.join(kept.says) and bool(kept.says) == bool(change)
    again = ask(retrain=True)
    assert (again.records, again.again) == (dict(vit=now), ['vit'] if change else []) and words in ' '.join(again.says)

def test_without_the_list_of_images_the_rest_is_still_said(tmp_path):
    with Run(tmp_path/'vit').stage('train', RECORD): pass
    said = settle([Run(tmp_path/'vit')], dict(vit={**RECORD, 'data': 'now'}), IMAGES, tmp_path).says
    assert 'other images' in said[0]

@pytest.mark.parametrize('links', [True, False])
def test_an_old_result_is_kept_whole_or_not_at_all(tmp_path, monkeypatch, links):
    "Killed while it is kept, nothing counts; the second try keeps it; what is written later isn't seen in it"
    out = tmp_path/'out'
    with Run(out/'runs'/'vit').stage('train', RECORD): (out/'runs'/'vit'/'w').write_text('old')
    (out/'runs.csv').write_text('old')
    if not links: monkeypatch.setattr(os, 'link', raises(OSError('no links')))
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr('pathlib.Path.rename', raises(KeyboardInterrupt()))
        keep_before(out, ['runs'], ['runs.csv'])
    assert (out/'runs.csv').exists() and not [*(out/'before').glob('2*')]
    kept = keep_before(out, ['runs', 'none'], ['runs.csv'])
    again = keep_before(out, ['runs'], ['runs.csv'])
    with Run(out/'runs'/'vit').stage('train', dict(RECORD, lr=.02)): atomic(out/'runs'/'vit'/'w', 'new')
    assert (kept/'runs.csv').read_text() == (kept/'runs'/'vit'/'w').read_text() == 'old' and not (out/'runs.csv').exists()
    assert Run(kept/'runs'/'vit').is_done('train', RECORD) and kept != again and not (again/'runs.csv').exists()

def atomic(path, text):
    with atomic_path(path) as tmp: tmp.write_text(text)
