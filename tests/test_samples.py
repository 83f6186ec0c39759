"What the samples promise beyond the examples of their chapter"
import errno, hashlib, io, os, signal, subprocess, sys, tarfile, threading, time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from vision_ft.core import DataError, SettingsError
from PIL import Image
from vision_ft.samples import atomic_folder, dataset, digits, scenes

@settings(max_examples=30, deadline=None)
@given(st.integers(16, 80), st.integers(0, 2**32-1))
def test_boxes_are_tight_and_masks_disjoint(size, seed):
    for s in scenes(3, size, seed):
        assert s.image.shape == (size, size, 3) and s.image.dtype == np.uint8 and s.masks.shape == (len(s.boxes), size, size)
        assert s.masks.sum(0).max() <= 1 and s.masks.any((1, 2)).all()
        for m, box in zip(s.masks, s.boxes):
            y, x = np.nonzero(m)
            assert box.tolist() == [x.min(), y.min(), x.max()+1, y.max()+1]

def test_a_killed_digits_leaves_no_folder_under_its_name(tmp_path):
    run = subprocess.Popen([sys.executable, '-c', f'from vision_ft.samples import digits; digits({str(tmp_path/"d")!r}, size=64)'])
    while run.poll() is None and len(list(tmp_path.rglob('*.jpg'))) < 50: time.sleep(.01)
    run.send_signal(signal.SIGKILL); run.wait()
    assert not (tmp_path/'d').exists()
    assert len(list(digits(tmp_path/'d').rglob('*.jpg'))) == 1797

def test_digits_on_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    save, n = Image.Image.save, 0
    def full(*args, **kwargs):
        nonlocal n
        n += 1
        if n > 9: raise OSError(errno.ENOSPC, 'No space left on device')
        return save(*args, **kwargs)
    with monkeypatch.context() as m, pytest.raises(SettingsError, match='the disk is full'):
        m.setattr(Image.Image, 'save', full)
        digits(tmp_path/'d')
    assert not list(tmp_path.iterdir())

def test_a_folder_that_another_process_made_meanwhile_is_kept(tmp_path):
    with pytest.raises(SettingsError, match='choose another folder'):
        with atomic_folder(tmp_path/'d') as tmp:
            (tmp/'a').write_text('mine')
            (tmp_path/'d').mkdir()
            (tmp_path/'d'/'b').write_text('theirs')
    assert [o.relative_to(tmp_path).as_posix() for o in tmp_path.rglob('*')] == ['d', 'd/b']

@pytest.mark.parametrize('kwargs', [dict(size=4), dict(size='big'), dict(test_share=0), dict(test_share=1)], ids=str)
def test_digits_refuses_before_it_works(tmp_path, kwargs):
    with pytest.raises(SettingsError, match='Fix:'): digits(tmp_path/'d', **kwargs)
    assert not list(tmp_path.iterdir())

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture
def serve(tmp_path, monkeypatch):
    "A function that serves bytes under a name and returns (address, checksum)"
    (tmp_path/'site').mkdir()
    monkeypatch.setenv('VISION_FT_CACHE', str(tmp_path/'cache')); monkeypatch.setenv('no_proxy', '127.0.0.1'); monkeypatch.delenv('VISION_FT_DATA', raising=False)
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=tmp_path/'site'))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    def put(name, data):
        (tmp_path/'site'/name).write_bytes(data)
        return f'http://127.0.0.1:{server.server_port}/{name}', hashlib.sha256(data).hexdigest()
    yield put
    server.shutdown(); server.server_close()

def tar(**files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w:gz') as t:
        for name, data in files.items():
            o = tarfile.TarInfo(name.replace('__', '/').replace('UP', '..')); o.size = len(data); t.addfile(o, io.BytesIO(data))
    return out.getvalue()

@pytest.mark.skipif(not hasattr(tarfile, 'data_filter'), reason='this Python cannot check tar files: 3.11.4 and later can')
def test_a_good_tar_is_unpacked_and_an_evil_one_leaves_nothing(serve, tmp_path):
    got = dataset('good', *serve('good.tar.gz', tar(a__x=b'1', b=b'2')))
    assert (got/'a/x').read_bytes() == b'1' and (got/'b').read_bytes() == b'2'
    with pytest.raises(DataError, match='cannot be unpacked'): dataset('evil', *serve('evil.tar.gz', tar(UP__UP__out=b'1')))
    assert [o.name for o in (tmp_path/'cache').iterdir()] == ['good'] and not list(tmp_path.rglob('out'))

def test_a_single_file_is_kept_as_it_is(serve):
    out = io.BytesIO(); np.savez(out, a=np.arange(3)) # an npz is a zip inside, and must not be unpacked
    assert np.load(dataset('water', *serve('water.npz', out.getvalue()))/'water.npz')['a'].tolist() == [0, 1, 2]

@pytest.mark.parametrize('name', ['../x', '/etc', 'a/../../x', '', '.', 'a//b', '.hidden', 'a\\b', '~', 'a/'])
def test_names_stay_inside(name, monkeypatch, tmp_path):
    monkeypatch.setenv('VISION_FT_DATA', str(tmp_path))
    with pytest.raises(SettingsError, match='is not the name of a data set'): dataset(name)
