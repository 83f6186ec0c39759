"The rehearsal finds what would break on Kaggle, and lets a good bundle pass"
import json, os, shutil, subprocess, sys, time
import psutil, pytest
from vision_ft.classify.bundle import bundle, missing_packages, read_image
from vision_ft.classify.compete import compete
from vision_ft.classify.settings import CompeteSettings
from vision_ft.classify.rehearse import image_packages, rehearse
from vision_ft.core import DataError, SettingsError
from vision_ft.samples import digits

@pytest.fixture(scope='module')
def data(tmp_path_factory): return digits(tmp_path_factory.mktemp('data')/'digits')

@pytest.fixture(scope='module')
def table(tmp_path_factory):
    csv = tmp_path_factory.mktemp('table')/'models.csv'
    csv.write_text('name,arch,epochs,pretrained\nsmall,tiny_convnext,1,tiny\n')
    return csv

def with_cells(folder, *sources):
    "The bundle with other cells"
    path = folder/'notebook'/'notebook.ipynb'
    book = json.loads(path.read_text())
    path.write_text(json.dumps(dict(book, cells=[dict(cell_type='code', source=s) for s in sources])))
    return folder

FIND = """import os
from pathlib import Path
INPUT, WORKING = Path(os.environ['VISION_FT_INPUT']), Path(os.environ['VISION_FT_WORKING'])
DATA = INPUT/'digits'
"""

def test_a_finished_run_predicts_there_what_it_predicted_here(tmp_path, data, table):
    "Through wheels, an environment of its own and the notebook, without network: the same submission"
    compete(data, tmp_path/'run', models=str(table), flip=False, progress=False)
    bundle(tmp_path/'run', tmp_path/'b', user='me', competition='digits')
    before = {p: p.stat().st_mtime_ns for p in data.rglob('*')}
    got = rehearse(tmp_path/'b', data, time='5m')
    assert got.problems == [], got
    assert (got.out/'working'/'submission.csv').read_text() == (tmp_path/'run'/'submission.csv').read_text()
    assert {p: p.stat().st_mtime_ns for p in data.rglob('*')} == before and got.out == tmp_path/'b'/'out'
    assert .1 < got.peak_gb < 5 and 'fastai' not in ' '.join(got.notes)

def test_a_second_session_takes_up_the_first(tmp_path, data, table):
    "The output of an earlier session is attached: what is finished is not trained again, and the answer is the same"
    first = tmp_path/'first'/'run'
    compete(data, first, models=str(table), flip=False, progress=False)
    bundle(table, tmp_path/'b', competition='digits', compete=CompeteSettings(flip=False))
    got = rehearse(tmp_path/'b', data, time='5m', earlier=tmp_path/'first', progress=False)
    assert got.problems == [], got
    for file in ('runs/small/run.json', 'submission.csv'): assert (got.out/'working'/'run'/file).read_text() == (first/file).read_text()
    with pytest.raises(SettingsError, match='(?s)would be replaced.*Fix: copy it'): rehearse(tmp_path/'b', data, earlier=got.out/'working')
    assert (got.out/'working'/'submission.csv').exists()

def test_what_is_refused_shows_even_where_it_is_caught(tmp_path, data, table):
    "Each attempt is in the list under its own file; neither your data nor, but for `touch`, the copy is changed"
    code = """import shutil, socket, subprocess
def attempt(f, *args, **kwargs):
    try: f(*args, **kwargs)
    except OSError: pass
files = sorted((DATA/'train_images').rglob('*.*'))
attempt(socket.create_connection, ('example.org', 80))
attempt(socket.socket().connect, ('192.0.2.1', 80))
attempt((DATA/'x.txt').write_text, 'x')
attempt((DATA/'new').mkdir)
attempt(os.mkdir, 'at', dir_fd=os.open(DATA, os.O_RDONLY))
attempt(os.remove, files[0])
attempt(os.remove, files[1].name, dir_fd=os.open(files[1].parent, os.O_RDONLY))
attempt(os.replace, WORKING/'a', files[2])
attempt(os.rename, files[3], WORKING/'a')
attempt(shutil.move, files[4], WORKING/'b')
attempt(shutil.rmtree, DATA/'test_images')
attempt(os.chmod, files[5], 0)
attempt(os.chown, files[6], 1, 1)
attempt(os.utime, files[7])
attempt(os.truncate, files[8], 0)
attempt(os.open, str(files[9]), os.O_RDWR)
attempt(os.link, files[10], WORKING/'c')
attempt(os.symlink, WORKING/'a', DATA/'link')
(WORKING/'inside').symlink_to(DATA)
attempt((WORKING/'inside'/'y.txt').write_text, 'y')
subprocess.run(['touch', str(DATA/'train.csv')])"""
    bundle(table, tmp_path/'b', competition='digits')
    mine = shutil.copytree(data, tmp_path/'data')
    before = {p: (p.stat().st_mtime_ns, p.stat().st_mode) for p in mine.rglob('*')}
    found = rehearse(with_cells(tmp_path/'b', FIND+code), mine, time='1m').problems
    files = [p.relative_to(mine) for p in sorted((mine/'train_images').rglob('*.*'))[:11]]
    for what in ('x.txt', 'new', 'at', 'test_images', 'link', 'y.txt', *files):
        assert f'it wrote to /kaggle/input/digits/{what}, which is not below /kaggle/working.' in found, (what, found)
    for what in ('example.org', '192.0.2.1', 'files of the input were changed'): assert what in '\n'.join(found), found
    assert not any('ended with' in o or 'Error' in o for o in found)
    copy = tmp_path/'b'/'out'/'input'/'digits'
    for folder in (mine, copy): assert {p.relative_to(folder) for p in folder.rglob('*')} == {p.relative_to(mine) for p in before}
    assert {p: (p.stat().st_mtime_ns, p.stat().st_mode) for p in mine.rglob('*')} == before

def test_data_around_the_bundle_are_no_loop(tmp_path, data, table):
    "A bundle made inside the folder of the competition: its rehearsal is not copied into itself"
    shutil.copytree(data, tmp_path/'data')
    bundle(table, tmp_path/'data'/'b', competition='digits')
    got = rehearse(with_cells(tmp_path/'data'/'b', '1'), tmp_path/'data', time='1m')
    assert (got.out/'input'/'digits'/'b'/'dataset').is_dir() and not (got.out/'input'/'digits'/'b'/'out').exists()

def test_room_for_the_input_is_asked_for_first(tmp_path, data, table, monkeypatch):
    bundle(table, tmp_path/'b')
    monkeypatch.setattr('vision_ft.classify.rehearse.free_bytes', lambda path: 10**6)
    with pytest.raises(SettingsError, match='(?s)no room for a copy of the input.*Fix: free some'): rehearse(tmp_path/'b', data)

def wait_for(happened):
    end = time.monotonic()+60
    while not happened() and time.monotonic() < end: time.sleep(.1)
    assert happened()

def test_a_killed_rehearsal_leaves_no_notebook_running(tmp_path, data, table):
    "Nor does a second one start beside it; afterwards it starts again"
    bundle(table, tmp_path/'b', competition='digits')
    with_cells(tmp_path/'b', FIND+"(WORKING/'new').write_text(str(os.getpid()))\nos.rename(WORKING/'new', WORKING/'pid')\nimport time\ntime.sleep(600)")
    code = f'from vision_ft.classify.rehearse import rehearse\nrehearse({str(tmp_path/"b")!r}, {str(data)!r})'
    pid = tmp_path/'b'/'out'/'working'/'pid'
    with subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL) as p:
        wait_for(pid.exists)
        notebook = psutil.Process(int(pid.read_text()))
        with pytest.raises(SettingsError, match='another process is working'): rehearse(tmp_path/'b', data)
        assert notebook.is_running()
        p.kill()
    wait_for(lambda: not notebook.is_running() or notebook.status() == psutil.STATUS_ZOMBIE)
    assert 'it was not done after' in rehearse(tmp_path/'b', data, time='3s').problems[0]

def test_a_notebook_that_attaches_another_data_set_is_refused(tmp_path, data, table):
    bundle(table, tmp_path/'b', user='me')
    file = tmp_path/'b'/'notebook'/'kernel-metadata.json'
    for other in ('me/another', 'vision-ft-bundle'):
        file.write_text(json.dumps(dict(json.loads(file.read_text()), dataset_sources=[other])))
        with pytest.raises(DataError, match=f"(?s)attaches .'{other}'., and the data set is me/vision-ft-bundle.*Fix: write me/vision-ft-bundle into"): rehearse(tmp_path/'b', data)
    file.unlink()
    with pytest.raises(DataError, match='metadata of .* cannot be read'): rehearse(tmp_path/'b', data)
    assert not (tmp_path/'b'/'out').exists()

@pytest.mark.parametrize('code,problem', [
    ("import time\ntime.sleep(60)", 'it was not done after'),
    ("x = bytearray(900_000_000)\nx[::4096] = b'1'*len(x[::4096])\nimport time\ntime.sleep(60)", 'GB of memory'),
    ("import no_such_package", "cell 1: ModuleNotFoundError: No module named 'no_such_package'"),
    ("import fastai", "No module named 'fastai'"), ("import vision_ft", "No module named 'vision_ft'"),
    ("1", 'there is no submission.csv'), ("raise SystemExit(3)", 'ended with status 3'),
    ("import shutil\nshutil.copy(DATA/'sample_submission.csv', WORKING/'submission.csv')", 'says the same of all'),
    ("(WORKING/'submission.csv').write_text('image_id,label\\n1,2\\n')", 'the ids of submission.csv')])
def test_what_would_break(tmp_path, data, table, code, problem):
    bundle(table, tmp_path/'b', competition='digits')
    got = rehearse(with_cells(tmp_path/'b', FIND+code), data, time='10s', memory='700MB')
    assert any(problem in o for o in got.problems), (got.problems, (got.out/'log.txt').read_text())

def test_what_is_allowed(tmp_path, data, table):
    "Own machine, own folders, subprocesses and folders that exist"
    code = """import socket, subprocess, sys, tempfile
s = socket.create_server(('127.0.0.1', 0))
socket.create_connection(s.getsockname()).close()
os.makedirs('/usr', exist_ok=True)
Path(tempfile.mkdtemp(), 'a').write_text('x')
Path.home().joinpath('b').write_text('x')
subprocess.run([sys.executable, '-c', 'open("c", "w").write("x")'], check=True, cwd=WORKING)
lines = (DATA/'sample_submission.csv').read_text().splitlines()
(WORKING/'submission.csv').write_text('\\n'.join([lines[0], *(f'{l[:-1]}{i%10}' for i, l in enumerate(lines[1:]))])+'\\n')"""
    bundle(table, tmp_path/'b', competition='digits')
    got = rehearse(with_cells(tmp_path/'b', FIND+code), data, time='1m')
    assert got.problems == [], (got, (got.out/'log.txt').read_text())
    again = rehearse(tmp_path/'b', data, time='1m') # over the earlier one
    assert again.problems == []

def test_a_missing_wheel_shows(tmp_path, data, table):
    "Taken out of the bundle and of its list, it is missed by the notebook: what the image has too old is hidden"
    bundle(table, tmp_path/'b', competition='digits')
    folder = tmp_path/'b'/'dataset'
    about = json.loads((folder/'bundle.json').read_text())
    for name in [f for f in about['files'] if 'fasttransform' in f]:
        (folder/name).unlink()
        del about['files'][name]
    (folder/'bundle.json').write_text(json.dumps(about))
    got = rehearse(tmp_path/'b', data, time='2m')
    assert any("No module named 'fasttransform'" in o for o in got.problems), got

def test_folders_that_are_not_ours_are_kept(tmp_path, table):
    bundle(table, tmp_path/'b')
    (tmp_path/'b'/'out').mkdir()
    (tmp_path/'b'/'out'/'mine.txt').write_text('mine')
    with pytest.raises(SettingsError, match='is no rehearsal'): rehearse(tmp_path/'b')
    assert (tmp_path/'b'/'out'/'mine.txt').read_text() == 'mine'
    with pytest.raises(DataError, match='is no bundle'): rehearse(tmp_path)

def test_a_rehearsal_that_ended_early_is_replaced(tmp_path, data, table):
    "After a kill in any state the next call starts afresh; data that are not there cost nothing"
    bundle(table, tmp_path/'b', competition='digits')
    with_cells(tmp_path/'b', '1')
    assert rehearse(tmp_path/'b', data, time='1m').problems == ['there is no submission.csv in /kaggle/working.']
    with pytest.raises(DataError, match='no folder'): rehearse(tmp_path/'b', tmp_path/'moved')
    assert (tmp_path/'b'/'out'/'log.txt').exists()
    (tmp_path/'b'/'out'/'run_cells.py').unlink() # as in the middle of its removal
    assert len(rehearse(tmp_path/'b', data, time='1m').problems) == 1

def test_the_image_is_no_more_than_its_list():
    image = read_image()
    names = image_packages(image, missing_packages(image))
    assert {'torch', 'timm', 'pandas', 'pip'} <= {*names} and not {'fastai', 'fastcore', 'vision-ft', 'pytest', 'nbdev', 'hypothesis'} & {*names}
