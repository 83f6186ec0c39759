"Files become pixels once, the same way everywhere"
import multiprocessing, os, random, shutil, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, torch
from fastai.torch_core import TensorImage
from fastai.vision.augment import RandomResizedCropGPU, Resize, aug_transforms
from fastai.vision.core import PILImage
from hypothesis import given, strategies as st
from PIL import Image
from vision_ft.classify.settings import TrainSettings
from vision_ft.classify.train import dataloaders
from vision_ft.core import DataError, SettingsError
from vision_ft.data import images as I
from vision_ft.samples import scenes

@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    "A JPEG of 480x640 (height x width)"
    path = tmp_path_factory.mktemp('photo')/'photo.jpg'
    Image.fromarray(scenes(1, size=640, seed=3)[0].image).crop((0, 80, 640, 560)).save(path, quality=92)
    return path

# --- from a file to pixels

def test_an_image_is_upright_and_on_white(tmp_path):
    wide = Image.fromarray(np.zeros((40, 80, 3), dtype=np.uint8))
    exif = wide.getexif()
    exif[0x112] = 6
    wide.save(tmp_path/'turned.jpg', exif=exif)
    Image.new('RGBA', (9, 9), (0, 0, 0, 0)).save(tmp_path/'clear.png')
    for f in (tmp_path/'turned.jpg', str(tmp_path/'turned.jpg')): assert I.ReadImage('pad 40')(f).shape == (3, 40, 20)
    assert I.ReadImage('squish 8')(tmp_path/'clear.png').min() == 255

@pytest.mark.parametrize('mode,most', [('RGB', 4), ('L', 1), ('LA', 1), ('P', 24), ('CMYK', 6)])
def test_images_of_any_mode(tmp_path, mode, most):
    ramp = np.linspace(0, 255, 256).round().astype(np.uint8)[None].repeat(256, 0)
    file = tmp_path/('a.jpg' if mode == 'CMYK' else 'a.png')
    Image.fromarray(ramp).convert('RGB').convert(mode).save(file)
    x = I.ReadImage('squish 64')(file).float()
    assert (x-torch.linspace(1.5, 253.5, 64)).abs().max() <= most

@given(st.sampled_from(I.METHODS), st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_any_shape_becomes_the_item(tmp_path_factory, method, w, h, W, H, in_training):
    file = tmp_path_factory.getbasetemp()/'any.png'
    Image.new('RGB', (w, h), 'white').save(file)
    item = f'{method} {H}x{W}'
    x = I.ReadImage(item)(file)
    y = I.item_tfm(item)(x, split_idx=int(not in_training))
    assert y.shape == (3, H, W) and y.dtype == torch.uint8 and type(y) is TensorImage
    if method == 'crop': assert x.shape[1] >= H and x.shape[2] >= W and y.min() == 255
    if method == 'pad': assert (y[0] == 255).sum() == x.shape[1]*x.shape[2]

def test_a_strip_does_not_fill_the_memory(tmp_path):
    Image.new('RGB', (20_000, 1)).save(tmp_path/'strip.png')
    assert I.ReadImage('crop 64')(tmp_path/'strip.png').shape == (3, 64, I.LONGEST*64)

@pytest.mark.parametrize('method', I.METHODS)
def test_items_that_are_not_too_large_are_as_fastai_makes_them(photo, method):
    "At validation, but for roundings along the border"
    pad = {'pad_mode': 'zeros'} if method == 'pad' else {}
    theirs = Resize(96, method=method, **pad)(PILImage.create(photo), split_idx=1)
    item = f'{method} 96'
    ours = I.item_tfm(item, 96)(I.ReadImage(item, 96)(photo), split_idx=1)
    off = (ours.float()-torch.from_numpy(np.array(theirs)).permute(2, 0, 1)).abs()
    assert off.mean() < 1.5

def test_a_crop_lies_anywhere_in_training_and_in_the_middle_otherwise():
    ramp, tfm = TensorImage(torch.arange(90)[None, None].repeat(3, 30, 1).byte()), I.item_tfm('crop 30')
    random.seed(0)
    places = {int(tfm(ramp, split_idx=0)[0, 0, 0]) for _ in range(300)}
    assert min(places) == 0 and max(places) == 60 and len(places) > 50
    assert int(tfm(ramp, split_idx=1)[0, 0, 0]) == 30

@pytest.mark.parametrize('item,size,read', [('squish 480', 128, (192, 192)), ('squish 480', None, (480, 480)), ('squish 480', 400, (480, 480)), ('squish 32', 64, (32, 32)),
    ('crop 640x480', 224, (448, 336)), ('crop 640x480', '320x224', (640, 480)), ('crop 480x640', (100, 100), (150, 200))])
def test_reading_size(item, size, read): assert I.reading_size(item, size) == read

# --- positions

def test_a_training_view_has_a_pixel_for_each_pixel():
    "Flips, rotations, zooms and crops never look at less than the training size; only perspective may, in a corner"
    window = I.augmentations(128)[0]
    x = TensorImage(torch.zeros(500, 1, 192, 192))
    torch.manual_seed(0)
    window.before_call((x,), split_idx=0)
    assert (window.mat[:, :, :2].double().det().abs().sqrt()*192).min() > 128

@pytest.mark.parametrize('flip', [True, False])
def test_changes_are_fastais_own(photo, flip, monkeypatch):
    "Without the crop, the same draws give what fastai gives, to the bit"
    monkeypatch.setattr(I, 'square_windows', lambda x, crop: torch.eye(3).repeat(len(x), 1, 1))
    x, out = I.ReadImage('squish 96')(photo)[None].repeat(8, 1, 1, 1)/255., []
    for tfms in (I.augmentations(64, flip), aug_transforms(size=64, do_flip=flip, align_corners=False)):
        torch.manual_seed(3)
        y = TensorImage(x.clone())
        for t in tfms: y = t(y, split_idx=0)
        out.append(y)
    assert torch.equal(*out) and len({o.numpy().tobytes() for o in out[0]}) == 8

def test_windows():
    torch.manual_seed(0)
    for h, w in ((64, 64), (48, 40), (100, 30)):
        m = I.square_windows(torch.empty(4000, 3, h, w), crop=True)
        sides = m[:, [1, 0], [1, 0]]*torch.tensor([h, w])
        assert torch.allclose(sides[:, 0], sides[:, 1]) and sides.max() <= min(h, w)+1e-3
        assert (sides[:, 0]**2 >= min(I.MIN_AREA*h*w, min(h, w)**2)*(1-1e-5)).all()
        assert (m[:, :2, 2].abs() <= 1-m[:, [0, 1], [0, 1]]+1e-6).all() # inside the image
        state = torch.get_rng_state()
        middle = I.square_windows(torch.empty(2, 3, h, w), crop=False)
        assert torch.equal(state, torch.get_rng_state()) # validation draws nothing
        assert torch.allclose(middle[0], torch.diag(torch.tensor([min(h, w)/w, min(h, w)/h, 1.])))

def test_validation_looks_where_fastai_looks():
    ramp = torch.stack(torch.meshgrid(torch.linspace(0, 1, 48), torch.linspace(0, 1, 40), indexing='ij'))[[0, 1, 0]][None]
    ours = I.augmentations((32, 64))[0](TensorImage(ramp), split_idx=1)
    theirs = RandomResizedCropGPU((32, 64), ratio=(1, 1))(TensorImage(ramp), split_idx=1)
    assert ours.shape == theirs.shape and (ours-theirs).abs().max() < .02

# --- as batches

@pytest.fixture(scope='module')
def table(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp('scenes'), []
    for i, s in enumerate(scenes(24, size=160)):
        Image.fromarray(s.image).crop((0, 0, 160, 120+i)).save(folder/f'{i}.jpg')
        rows.append(dict(id=f'{i}.jpg', label='ab'[i%2], path=str(folder/f'{i}.jpg')))
    return pd.DataFrame(rows)

def batches(table, item, num_workers=0, cache=None):
    "Two epochs of training, then validation, then a test set"
    s = TrainSettings('tiny_convnext', size=48, item=item)
    for seed in (random.seed, np.random.seed, torch.manual_seed): seed(1)
    dls = dataloaders(table[:16], table[16:], s, bs=8, num_workers=num_workers, cache=cache)
    dls.rng.seed(1)
    return [b[0] for dl in (dls.train, dls.train, dls.valid, dls.test_dl(table.path.tolist())) for b in dl]

@pytest.mark.parametrize('item', ['squish 96', 'crop 96', 'pad 64x96'])
def test_a_cache_changes_no_bit(table, tmp_path, item):
    want = batches(table, item)
    for _ in range(2):
        got = batches(table, item, cache=tmp_path/'cache')
        assert len(want) == len(got) and all(torch.equal(a, b) for a, b in zip(want, got))
    assert len(list(tmp_path.glob('cache/*/*'))) == 24

def test_workers_read_the_same_and_may_share_a_cache(table, tmp_path):
    want = batches(table, 'squish 96')[-4:]
    got = batches(table, 'squish 96', num_workers=2, cache=tmp_path/'cache')[-4:]
    assert all(torch.equal(a, b) for a, b in zip(want, got))

def test_a_test_set_from_paths_of_either_kind(table):
    dls = dataloaders(table[:16], table[16:], TrainSettings('tiny_convnext', size=48, item='crop 64'), bs=8, num_workers=0)
    sets = [dls.test_dl(items) for items in (table, table.path.tolist(), [Path(p) for p in table.path])]
    first, *rest = [torch.cat([b[0] for b in dl]) for dl in sets]
    assert all(torch.equal(first, o) for o in rest)

@pytest.mark.parametrize('num_workers', [0, 1])
def test_a_file_that_is_no_image_is_named(table, tmp_path, num_workers):
    (tmp_path/'broken.jpg').write_bytes(Path(table.path[0]).read_bytes()[:300])
    bad = pd.concat([table, table[:1].assign(id='x', path=str(tmp_path/'broken.jpg'))])
    with pytest.raises(DataError, match='broken.jpg cannot be read'): batches(bad, 'squish 64', num_workers)

# --- the cache

@pytest.mark.parametrize('spoil', [lambda b: b'', lambda b: b[:50], lambda b: b[:-1], lambda b: b+b'x', lambda b: bytes(len(b)), lambda b: bytes(4), lambda b: b[:30]+b'!'+b[31:]])
def test_a_broken_file_of_the_cache_is_made_again(photo, tmp_path, spoil):
    read = I.ReadImage('squish 64', cache=tmp_path)
    want = read(photo)
    file, = tmp_path.glob('*/*')
    whole = file.read_bytes()
    file.write_bytes(spoil(whole))
    assert torch.equal(read(photo), want) and file.read_bytes() == whole

def test_a_changed_image_or_another_transform_is_another_file(photo, tmp_path):
    file, seen = tmp_path/'a.jpg', []
    for rotate in (0, 180):
        Image.open(photo).rotate(rotate).save(file)
        for item, size in (('squish 64', None), ('crop 64', None), ('squish 64', 32)):
            x = I.ReadImage(item, size, tmp_path/'cache')(file)
            assert torch.equal(x, I.ReadImage(item, size)(file))
            seen.append(x.numpy().tobytes())
    assert len(set(seen)) == 6 == len(list((tmp_path/'cache').glob('*/*')))
    shutil.copy(file, tmp_path/'copy.jpg')
    I.ReadImage('squish 64', None, tmp_path/'cache')(tmp_path/'copy.jpg')
    assert len(list((tmp_path/'cache').glob('*/*'))) == 6 # the same content

def test_a_cache_leaves_room_on_its_disk(photo, tmp_path, monkeypatch):
    read, want = I.ReadImage('squish 64', cache=tmp_path), I.ReadImage('squish 64')(photo)
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: SimpleNamespace(free=I.ROOM))
    with pytest.warns(UserWarning, match='keeps no more images') as said:
        for _ in range(3): assert torch.equal(read(photo), want)
    assert len(said) == 1 and not list(tmp_path.glob('*/*'))

def test_a_cache_where_nothing_can_be_written_is_refused(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(SettingsError, match='Fix: '): I.ReadImage('squish 64', cache=tmp_path/'file')

@pytest.mark.parametrize('ended_in', ['write', 'rename'])
def test_a_process_that_ends_while_it_writes_leaves_no_file(photo, tmp_path, monkeypatch, ended_in):
    def half(file, data):
        with open(file, 'wb') as f: f.write(data[:99])
        raise KeyboardInterrupt
    read, want = I.ReadImage('squish 64', cache=tmp_path), I.ReadImage('squish 64')(photo)
    with monkeypatch.context() as m:
        if ended_in == 'write': m.setattr(Path, 'write_bytes', half)
        else: m.setattr(os, 'replace', lambda *a: exec('raise KeyboardInterrupt'))
        with pytest.raises(KeyboardInterrupt): read(photo)
    assert not list(tmp_path.glob('*/*')) and torch.equal(read(photo), want) and len(list(tmp_path.glob('*/*'))) == 1

def test_processes_share_a_cache_and_may_be_killed(table, tmp_path):
    "Two fill and empty it all the time, are killed anywhere, and a third gets the right pixels throughout"
    read, files, fork = I.ReadImage('squish 64', cache=tmp_path), table.path[:6], multiprocessing.get_context('fork')
    want, n = [I.ReadImage('squish 64')(f) for f in files], 0
    def fill():
        while True:
            for f in files: read(f)
            for f in tmp_path.glob('*/[!.]*'): f.unlink(missing_ok=True)
    for _ in range(8):
        writers = [fork.Process(target=fill) for _ in range(2)]
        for w in writers: w.start()
        end = time.monotonic()+.1+random.random()/20
        while time.monotonic() < end:
            assert all(torch.equal(read(f), w) for f, w in zip(files, want))
            n += 1
        for w in writers: w.kill()
        for w in writers: w.join()
        assert all(I.load_pixels(f) is not None for f in tmp_path.glob('*/[!.]*')) # nothing half-written has a name
    assert n and all(torch.equal(read(f), w) for f, w in zip(files, want))
