"Predictions keep their names; files are whole; a full disk, groups, sizes and images are read in one place each"
import errno, math, os, re, subprocess, sys
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from vision_ft import core
from vision_ft.blend import ensemble
from vision_ft.core import DataError, Preds, SettingsError, check_groups, group_codes, groups_among, load_preds
from vision_ft.stats import wilson

names = st.text(st.characters(blacklist_categories=['Cs'], blacklist_characters='\0'), min_size=1, max_size=8)

@st.composite
def preds(draw, name='a'):
    ids, vocab = draw(st.lists(names, min_size=1, max_size=12, unique=True)), draw(st.lists(names, min_size=2, max_size=6, unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32-1)))
    targets = rng.choice(np.array(vocab, dtype=object), len(ids)) if draw(st.booleans()) else None
    return Preds(ids, vocab, rng.dirichlet(np.ones(len(vocab)), len(ids)), targets, name)

def shuffled(p, seed, name):
    rng = np.random.default_rng(seed)
    rows, cols = rng.permutation(len(p)), rng.permutation(len(p.vocab))
    return Preds(p.ids[rows], p.vocab[cols], p.probs[rows][:, cols], None if p.targets is None else p.targets[rows], name)

@settings(max_examples=60, deadline=None)
@given(preds())
def test_file_gives_back_what_was_saved(tmp_path_factory, p):
    q = load_preds(p.save(tmp_path_factory.mktemp('p')/'p.parquet'))
    assert q.ids.tolist() == p.ids.tolist() and q.vocab.tolist() == p.vocab.tolist() and q.name == p.name
    assert (q.probs == p.probs).all() and ((q.targets is None) == (p.targets is None))
    if p.targets is not None: assert q.targets.tolist() == p.targets.tolist()

@settings(max_examples=60, deadline=None)
@given(preds(), st.integers(0, 2**32-1), st.floats(0, 5), st.floats(.1, 5))
def test_ensemble_joins_by_name(p, seed, wa, wb):
    q = shuffled(p, seed, 'b')
    assert (q.align(p).probs == p.probs).all()
    e, f = ensemble([p, q], dict(a=wa, b=wb)), ensemble([q, p], dict(b=wb, a=wa)).align(p)
    np.testing.assert_allclose(e.probs, p.probs, atol=1e-6) # a mixture of a thing with itself
    np.testing.assert_allclose(e.probs, f.probs, atol=1e-6)

@pytest.mark.parametrize('k,n', [(0, 30), (1, 30), (15, 30), (30, 30)])
def test_wilson_agrees_with_scipy(k, n):
    from scipy.stats import binomtest
    ci = binomtest(k, n).proportion_ci(method='wilson')
    assert wilson(k, n) == pytest.approx((ci.low, ci.high), abs=1e-3)

@pytest.mark.parametrize('ids,vocab', [(['caf\udce9.png'], ['cat']), (['a.png'], ['chat caf\udce9'])])
def test_names_that_are_not_utf8_are_refused_in_one_sentence(tmp_path, ids, vocab):
    p = Preds(ids, vocab, [[1]], name='p') # as os.fsdecode reads a Latin-1 name
    with pytest.raises(DataError, match=r'caf\\udce9.* is not valid UTF-8.*\n  Fix: rename'): p.save(tmp_path/'p.parquet')
    assert not list(tmp_path.iterdir())

def test_names_stay_exact(tmp_path):
    p = Preds([' a.jpg', 'a.jpg', 'A.jpg'], ['cat', 'cat ', 'Cat'], np.eye(3), name=' n ')
    q = load_preds(p.save(tmp_path/'p.parquet'))
    assert q.ids.tolist() == [' a.jpg', 'a.jpg', 'A.jpg'] and q.vocab.tolist() == ['cat', 'cat ', 'Cat'] and q.name == ' n '

@pytest.mark.parametrize('probs', [[[.5, .6]], [[1.5, -.5]], [[float('nan'), 1]], [[float('inf'), 0]], [[0, 0]], [[50, 50]], [.5, .5]])
def test_what_is_no_distribution_is_refused(probs):
    with pytest.raises(DataError, match='probs'): Preds(['a'], ['x', 'y'], probs)

def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path/'half.parquet').write_bytes(b'PAR1 and then the lights went out')
    pd.DataFrame(dict(a=[1])).to_parquet(tmp_path/'other.parquet')
    for name, says in (('half', 'cannot be read'), ('none', 'cannot be read'), ('other', "has columns \\['a'\\]")):
        with pytest.raises(DataError, match=f'{says}.*\n  Fix: write it with'): load_preds(tmp_path/f'{name}.parquet')

# --- files and disks

full = [OSError(errno.ENOSPC, 'No space left on device'), OSError(errno.EDQUOT, 'Disk quota exceeded'),
        Exception('Error while serializing: I/O error: No space left on device (os error 28)')] # as safetensors says it

@pytest.mark.parametrize('error', full, ids=lambda e: str(e)[:20])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path, error):
    (tmp_path/'a.txt').write_text('old')
    with pytest.raises(SettingsError, match='a.txt could not be written: the disk is full.\n  Fix: free some space') as e:
        with core.atomic_path(tmp_path/'a.txt') as tmp:
            tmp.write_text('new')
            raise error
    assert e.value.__cause__ is error and (tmp_path/'a.txt').read_text() == 'old' and len(list(tmp_path.iterdir())) == 1

def test_a_full_disk_is_seen_whatever_the_writer_says(tmp_path, monkeypatch):
    "torch.save says `unexpected pos 704 vs 598`"
    error = RuntimeError('[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598')
    with pytest.raises(RuntimeError, match='unexpected pos'):
        with core.disk_errors(tmp_path/'none'/'a.pt'): raise error
    monkeypatch.setattr(core.shutil, 'disk_usage', lambda path: type('', (), dict(free=4096)) if os.path.exists(path) else 1/0)
    with pytest.raises(SettingsError, match='the disk is full'):
        with core.disk_errors(tmp_path/'none'/'a.pt'): raise error

@pytest.mark.parametrize('code', [errno.EACCES, errno.EPERM, errno.EROFS])
@pytest.mark.parametrize('where', ['pathlib.Path.mkdir', 'pathlib.Path.touch', 'os.replace'])
def test_a_closed_folder_is_one_sentence(tmp_path, monkeypatch, where, code):
    def closed(*args, **kwargs): raise OSError(code, os.strerror(code), str(args[0]))
    with monkeypatch.context() as m, pytest.raises(SettingsError, match=f'could not be written: .*{os.strerror(code)}(.|\n)*Fix: choose another folder'):
        m.setattr(where, closed)
        with core.atomic_path(tmp_path/'a.txt') as tmp: tmp.write_text('new')
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('error', [KeyboardInterrupt(), ValueError('shape'), DataError('no images'), FileNotFoundError(errno.ENOENT, 'No such file')], ids=repr)
def test_other_errors_pass_unchanged(tmp_path, error):
    with pytest.raises(type(error)) as e:
        with core.atomic_path(tmp_path/'a.txt'): raise error
    assert e.value is error and not list(tmp_path.iterdir())

def test_files_have_the_usual_permissions(tmp_path):
    "safetensors replaces the file that it is given by one that only its owner can read"
    import torch
    from safetensors.torch import save_file
    mask = os.umask(0o027)
    try:
        with core.atomic_path(tmp_path/'a.safetensors') as tmp: save_file(dict(a=torch.zeros(2)), tmp)
    finally: os.umask(mask)
    assert (tmp_path/'a.safetensors').stat().st_mode & 0o777 == 0o640

# --- groups, numbers, sizes

def test_groups_in_any_form_are_the_same():
    ids, groups = ['a', 'b', 'c', 'd'], ['1', '1', '', None]
    table = pd.DataFrame(dict(id=ids, group=groups))
    forms = [dict(zip(ids, groups)), table.set_index('id').group, table, core.read_groups(table), dict(zip(ids, [1, 1, float('nan'), ' ']))]
    for o in forms:
        assert core.group_codes(o, ids).tolist() == [0, 0, 1, 2] and core.named_groups(o, ids) == (['a', 'b'], ['1', '1'])
    assert core.group_codes(None, ids).tolist() == [0, 1, 2, 3]
    assert core.group_codes({'a': 'x', 'b': 'x ', 'z': 'x'}, ids).tolist() == [0, 0, 1, 2] # a blank makes no other group
    with pytest.raises(DataError, match='every group is empty'): core.group_codes(table.assign(group=None), ids)

@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=20))
def test_connect_joins_what_a_union_find_joins(pairs):
    root = {('id', i): ('id', i) for i, _ in pairs} | {('key', k): ('key', k) for _, k in pairs}
    def find(a): return a if root[a] == a else find(root[a])
    for i, k in pairs: root[find(('id', i))] = find(('key', k))
    got = core.connect([f'{i}' for i, _ in pairs], [k for _, k in pairs])
    assert got.index.is_unique and set(got.index) == {f'{i}' for i, _ in pairs}
    for i in got.index:
        for j in got.index: assert (got[i] == got[j]) == (find(('id', int(i))) == find(('id', int(j))))

@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_sizes_in_any_form_are_the_same(h, w):
    for size in (f'{h}x{w}', f'{h} X {w}', (h, w), [float(h), str(w)], (np.int64(h), np.float32(w) if w < 2**24 else w)):
        assert core.parse_size(size) == (h, w)
    assert core.parse_size(h) == core.parse_size(str(h)) == core.parse_size((h,)) == (h, h)

@pytest.mark.parametrize('size', ['', 'x', '3x', '1x2x3', 0, -1, 2.5, None, True, float('nan'), float('inf'), (1, None), [], {}, 'big'])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(SettingsError, match='not a size in pixels'): core.parse_size(size)

@pytest.mark.parametrize('text,mib', [('13GB', 13*1024), ('900MB', 900), ('1.5 gib', 1536), (2, 2), (.5, .5)])
def test_an_amount_of_memory(text, mib): assert core.parse_memory(text) == mib

@pytest.mark.parametrize('text', ['0GB', 'GB', '13TB', '-1GB', '2', '1.2.3GB', 0, -1, 16*2**30, None, True, float('nan'), [1]])
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(SettingsError, match="not an amount of memory.\n  Fix: write it like '16GB'"): core.parse_memory(text)

@pytest.mark.parametrize('text,seconds', [('9h', 32400), ('1h30m', 5400), ('30 min', 1800), ('1.5h', 5400), ('90', 90), (90, 90), (None, math.inf)])
def test_budgets(text, seconds): assert core.parse_budget(text) == seconds

@pytest.mark.parametrize('text', ['soon', '1h30', '', '0', '-5', 'nan', 'h', '9h9h'])
def test_budgets_that_are_none(text):
    with pytest.raises(SettingsError, match='write 9h, 30m'): core.parse_budget(text)

@pytest.mark.parametrize('n,limits,fix', [(65, dict(most=64), 'pass a whole number, from 1 to 64.'), (0, {}, 'pass a whole number, 1 or more.'),
                                         (-1, dict(least=0, most=9), 'pass a whole number, from 0 to 9.'), ('x', dict(least=2), 'pass a whole number, 2 or more.')])
def test_the_fix_of_a_count_names_its_limits(n, limits, fix):
    with pytest.raises(SettingsError, match='n must be a whole number') as e: core.whole_number(n, 'n', **limits)
    assert e.value.fix == fix
    with pytest.raises(SettingsError) as e: core.set_seed(-1)
    assert core.set_seed(re.findall(r'\d+', e.value.fix)[1]) == 2**32-1 and core.set_seed(0) == 0

def test_few_names_are_all_listed_and_of_many_the_nearest():
    def fix(*args): return pytest.raises(SettingsError, core.check_name, *args).value.fix
    assert fix('gpu', ['cuda', 'mps', 'cpu'], 'device') == 'did you mean one of cpu, cuda, mps?'
    assert fix('zzz', ['cuda', 'mps', 'cpu'], 'device') == 'did you mean one of cuda, mps, cpu?'
    many = ['resnet', 'vit', 'swin', 'convnext', 'levit', 'mixer']
    assert fix('vitt', many, 'arch').startswith('did you mean one of vit') and 'mixer' not in fix('vitt', many, 'arch')
    assert fix('zzz', many, 'arch') == f'did you mean one of {", ".join(many)}?' and fix('zzz', map(str, range(21)), 'arch', 'see x.') == 'see x.'
    with pytest.raises(SettingsError, match='cpu, cuda, mps'): core.pick_device('gpu')

def test_core_loads_nothing_heavy():
    code = "import sys, vision_ft.core; print([o for o in ('torch', 'pandas', 'PIL', 'fastai', 'scipy', 'pyarrow') if o in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == '[]\n'

# --- images

@pytest.mark.parametrize('orientation', range(1, 9))
def test_images_are_upright(tmp_path, orientation):
    from PIL import Image
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.zeros((3, 5, 3), np.uint8) # a red corner at the top left of what is stored
    stored[0, 0] = 255, 0, 0
    Image.fromarray(stored).save(tmp_path/'a.png', exif=exif)
    seen = np.asarray(core.open_rgb(tmp_path/'a.png'))
    assert seen.shape == ((3, 5, 3) if orientation < 5 else (5, 3, 3))
    corner = dict(zip(range(1, 9), [(0, 0), (0, -1), (-1, -1), (-1, 0), (0, 0), (0, -1), (-1, -1), (-1, 0)]))[orientation] # EXIF 2.3, tag 0x0112
    assert tuple(seen[corner]) == (255, 0, 0) and (seen[..., 0] > 0).sum() == 1

@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK'])
def test_every_mode_opens_as_rgb(tmp_path, mode):
    from PIL import Image
    Image.new(mode, (4, 3)).save(tmp_path/'a.tif')
    im = core.open_rgb(tmp_path/'a.tif')
    assert im.mode == 'RGB' and im.size == (4, 3)
    if mode in ('LA', 'RGBA', 'PA'): assert im.getextrema() == ((255, 255),)*3 # nothing but transparency

@pytest.mark.parametrize('mode,suffix', [('I;16', 'png'), ('I;16', 'tif'), ('I;16B', 'tif'), ('I', 'tif'), ('F', 'tif')])
def test_more_than_8_bits_a_channel_are_refused(tmp_path, mode, suffix):
    "Pillow's RGB clips them at 255: all white"
    from PIL import Image
    Image.new(mode, (4, 3), 3000).save(path := tmp_path/f'a.{suffix}')
    for read in (core.open_image, core.open_rgb):
        with pytest.raises(DataError, match=r'a\.\w+ is of more than 8 bits a channel \(mode \S+\).*\n  Fix: save it with 8 bits'): read(path)

def test_damaged_exif_hides_no_image(tmp_path):
    "Each byte of it set to three values: turned where the orientation can be read, left as it is elsewhere"
    from PIL import Image, ImageOps
    stored = Image.new('L', (64, 32), 'white')
    stored.paste(0, (0, 0, 32, 32)) # the left half is black
    exif = Image.Exif()
    exif.update({0x010f: 'maker', 0x0112: 6, 0x011a: 72.})
    stored.save(tmp_path/'a.jpg', exif=exif)
    whole = (tmp_path/'a.jpg').read_bytes()
    at, failed = whole.index(b'Exif\0\0')+6, 0
    for i in range(at, at+56):
        for value in (0, 11, 255):
            (tmp_path/'b.jpg').write_bytes(whole[:i]+bytes([value])+whole[i+1:])
            im = core.open_rgb(tmp_path/'b.jpg')
            first = im.getpixel((0, 0))[0] # at the top if upright
            assert first < 9 and im.size in ((32, 64), (64, 32)) and im.getpixel((31, 31))[0] < 9
            try: ImageOps.exif_transpose(Image.open(tmp_path/'b.jpg'))
            except Exception:
                failed += 1
                assert im.size == (32, 64) # its orientation is sound
    assert failed # so this is no easy case

def test_a_heic_photo_is_read_or_says_what_it_needs(tmp_path):
    "By its content, whatever its name; a stand-in shows that the opener is registered only then"
    from unittest import mock
    from PIL import Image, UnidentifiedImageError
    for name, brand in (('a.jpg', b'heic'), ('b.heic', b'mif1'), ('c.HEIC', b'hevx')): (tmp_path/name).write_bytes(b'\0\0\0\x18ftyp'+brand+b'\0'*20)
    for name in ('a.jpg', 'b.heic', 'c.HEIC'):
        with mock.patch.dict(sys.modules, pillow_heif=None), pytest.raises(DataError, match=f'{name} is HEIC') as e: core.open_rgb(tmp_path/name)
        assert e.value.fix.startswith("pip install 'vision_ft[heic]'")
        heif = mock.MagicMock(__spec__=mock.MagicMock())
        with mock.patch.dict(sys.modules, pillow_heif=heif), pytest.raises(UnidentifiedImageError): core.open_rgb(tmp_path/name)
        heif.register_heif_opener.assert_called_once()
    Image.new('RGB', (4, 3)).save(tmp_path/'d.jpg')
    with mock.patch.dict(sys.modules, pillow_heif=None): assert core.open_rgb(tmp_path/'d.jpg').size == (4, 3)
    (tmp_path/'e.avif').write_bytes(b'\0\0\0\x18ftypavif'+b'\0'*20)
    with pytest.raises((UnidentifiedImageError, OSError, SyntaxError)): core.open_rgb(tmp_path/'e.avif') # damaged, in a Pillow that reads AVIF
    with mock.patch('PIL.features.get_supported', return_value=[]), mock.patch('PIL.Image.open', side_effect=UnidentifiedImageError), pytest.raises(DataError, match='is AVIF') as e:
        core.open_rgb(tmp_path/'e.avif')
    assert 'pillow>=11.3' in e.value.fix

def test_a_heic_photo_is_upright_and_in_colour(tmp_path):
    heif = pytest.importorskip('pillow_heif', reason="needs pip install 'vision_ft[heic]'")
    from PIL import Image
    seen = Image.new('RGB', (64, 48), 'red')
    seen.paste('blue', (32, 0, 64, 48))
    exif = Image.Exif()
    exif[0x0112] = 6
    heif.from_pillow(seen.transpose(Image.Transpose.ROTATE_90)).save(tmp_path/'a.heic', exif=exif.tobytes(), quality=95)
    (tmp_path/'a.heic').rename(tmp_path/'a.jpg')
    got = np.asarray(core.open_rgb(tmp_path/'a.jpg')).astype(int)
    assert got.shape == (48, 64, 3) and got[24, 8, 0] > 200 > 60 > got[24, 8, 2] and got[24, 56, 2] > 200

# --- groups of a whole folder and of a part of it

def test_ids_of_groups_may_be_written_in_another_form():
    ids = ['caf\xe9/1.jpg', 'b/2.jpg', 'c.jpg']
    groups = {'cafe\u0301/1.jpg': 'x', './b/2.jpg': 'x', 'gone.jpg': 'x'}
    assert core.group_codes(groups, ids).tolist() == [0, 0, 1] and list(groups_among(groups, ids).index) == ids[:2]
    with pytest.warns(UserWarning, match=r"1 of 3 ids .* \['gone.jpg'\]; 1 of 3 images"): check_groups(groups, ids)
    assert core.match_ids(['e\u0301', '\xe9'], ['e\u0301', '\xe9']) == ['e\u0301', '\xe9'] # two files that differ in their form alone

def test_groups_that_name_absent_images_are_counted():
    groups = {'a.jpg': 1, 'b.jpg': 1, 'gone.jpg': 2}
    with pytest.warns(UserWarning, match=r"1 of 3 ids .* \['gone.jpg'\]; 1 of 3 images have no group"): check_groups(groups, ['a.jpg', 'b.jpg', 'c.jpg'])
    with pytest.raises(DataError, match='none of the images'): check_groups(groups, ['x.jpg'])
    assert dict(groups_among(groups, ['a.jpg', 'c.jpg'])) == {'a.jpg': '1'}
    assert groups_among(groups, ['c.jpg']) is None and groups_among(None, ['a.jpg']) is None

def test_ids_may_be_numbers():
    "Ids are text, whoever gives them: positions as numbers fit groups whose ids are numbers"
    groups = {0: 'a', 1: 'a', 2: 'b'}
    assert group_codes(groups, range(4)).tolist() == group_codes(groups, np.arange(4)).tolist() == [0, 0, 1, 2]
    assert list(groups_among(groups, [2, 3])) == ['b']

def test_an_error_keeps_its_words_and_survives_pickling():
    "fastai rewrites the arguments of what a callback raises; processes send errors to each other"
    import pickle
    e = DataError('wrong', 'mended so.')
    assert str(pickle.loads(pickle.dumps(e))) == str(e) == 'wrong\n  Fix: mended so.'
    e.args = ('Exception occured in `X` when calling event `before_fit`:',)
    assert str(e) == 'wrong\n  Fix: mended so.'

def test_a_table_of_groups_without_rows_is_refused():
    "A failed export would give a split that looks grouped"
    with pytest.raises(DataError, match='has no rows'): core.read_groups(pd.DataFrame(dict(id=[], group=[])))
