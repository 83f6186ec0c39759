"Views, and their predictions from Learners and from plain models"
from functools import partial
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch, torch.nn.functional as F
from fastai.data.load import DataLoader as FastaiDataLoader
from fastai.vision.all import (BaseLoss, BCELossFlat, BCEWithLogitsLossFlat, FocalLossFlat, L1LossFlat, LabelSmoothingCrossEntropy,
                               CategoryBlock, ColReader, CrossEntropyLossFlat, DataBlock, DataLoaders, ImageBlock,
                               ImageDataLoaders, Learner, MSELossFlat, MultiCategoryBlock, PILImage, PointBlock, RegressionBlock, Resize, load_learner)
from fasttransform import Pipeline
from hypothesis import given, strategies as st
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from vision_ft.classify import tta as T
from vision_ft.core import DataError, Preds, SettingsError
from vision_ft.data.tables import drop_unreadable, image_table
from vision_ft.samples import digits
from vision_ft.stats import compare_preds

# --- views

flips = dict(
    plain=lambda x: x, hflip=lambda x: x.flip(-1), vflip=lambda x: x.flip(-2), rot180=lambda x: x.flip((-1, -2)),
    rot90=lambda x: x.rot90(1, (-2, -1)), rot270=lambda x: x.rot90(3, (-2, -1)), transpose=lambda x: x.transpose(-1, -2),
    transverse=lambda x: x.rot90(2, (-2, -1)).transpose(-1, -2))
photo = lambda b=2, h=48, w=48: torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(0))
at = lambda v, x, **kw: T.apply_view(v, x, [f'{i}.jpg' for i in range(len(x))], **kw)

@pytest.mark.parametrize('v', flips)
def test_symmetries_are_what_torch_says(v):
    x = photo()
    assert torch.equal(at(v, x), flips[v](x))
    torch.testing.assert_close(T._resample(T.MipMap(x), T.view_matrix(v, ['a']), 1., (48, 48)), flips[v](x), atol=1e-4, rtol=0)

@given(st.lists(st.sampled_from(list(flips)), min_size=1, max_size=4))
def test_names_compose_from_left_to_right(parts):
    x = y = photo(1)
    for p in parts: y = flips[p](y)
    assert torch.equal(at('+'.join(parts), x), y)

def test_a_flip_then_a_crop_is_the_crop_of_the_flip():
    x = photo()
    torch.testing.assert_close(at('hflip+top_left', x), at('top_left', x.flip(-1)), atol=1e-4, rtol=0)
    torch.testing.assert_close(at('top_left+hflip', x), at('top_left', x).flip(-1), atol=1e-4, rtol=0)
    assert not torch.allclose(at('hflip+top_left', x), at('top_left+hflip', x), atol=.05)

def test_corners_look_at_their_corners():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 40), torch.linspace(-1, 1, 40), indexing='ij')
    for v, (sx, sy) in dict(top_left=(-1, -1), top_right=(1, -1), bottom_left=(-1, 1), bottom_right=(1, 1), crop=(0, 0)).items():
        o = at(v, torch.stack([x, y, x])[None])[0]
        assert np.sign(round(float(o[0].mean()), 2)) == sx and np.sign(round(float(o[1].mean()), 2)) == sy

def test_random_crops_depend_on_seed_number_and_id_only():
    x, ids = photo(1).expand(4, -1, -1, -1), ['a', 'b', 'c', 'd']
    a = T.apply_view('random1', x, ids)
    assert torch.equal(T.apply_view('random1', x[:2], ['d', 'a']), a[[3, 0]])
    assert len({o.numpy().tobytes() for o in a}) == 4
    assert not torch.equal(T.apply_view('random2', x, ids), a) and not torch.equal(T.apply_view('random1', x, ids, seed=1), a)
    m = T.view_matrix('random1', [str(i) for i in range(2000)])
    assert m[:, 0, 0].min() >= T.view_scale('random1') and m[:, 0, 0].max() <= 1 and (abs(m[:, :2, 2]).max(1) <= 1-m[:, 0, 0]+1e-12).all() # inside the image
    assert abs((m[:, 0, 0]**2).mean()-.875) < .01

@pytest.mark.parametrize('v', ['random1', 'crop', 'hflip+random2', 'zoom1.3'])
def test_no_aliasing(v):
    board = ((torch.arange(480)[:, None]+torch.arange(480))%2).float().expand(1, 3, -1, -1)
    o = at(v, board, plain=torch.zeros(1, 3, 128, 128))
    assert o.shape == (1, 3, 128, 128) and (o-.5).abs().max() < 1e-4

@pytest.mark.parametrize('hw,size', [((481, 333), (64, 64)), ((97, 95), (24, 32)), ((5, 7), (2, 2)), ((20, 20), (64, 64))])
def test_any_size(hw, size):
    for v in ('random1', 'rot180+random1', 'zoom0.8', 'brighter+crop'): assert at(v, photo(2, *hw), plain=torch.zeros(2, 3, *size)).shape == (2, 3, *size)

def test_colours():
    x, mean, std = photo(), (.4, .5, .6), (.2, .3, .25)
    m, s = (torch.tensor(o).view(3, 1, 1) for o in (mean, std))
    for v in ('brighter', 'darker', 'more_contrast', 'less_contrast', 'more_colour', 'less_colour'):
        o = at(v, x)
        assert 0 <= o.min() and o.max() <= 1 and not torch.allclose(o, x, atol=.01)
        torch.testing.assert_close(at(v, (x-m)/s, stats=(mean, std))*s+m, o, atol=1e-5, rtol=0)
    assert at('more_contrast', x).std() > x.std() > at('less_contrast', x).std()

@pytest.mark.parametrize('bad,says', [([], 'at least one name'), (['plain', 'plain'], 'no name twice'), (['hflop'], 'hflip'), ('zoom9', 'zoom4'), (['random'], 'random1'), (['hflip+'], 'view')])
def test_wrong_views_are_refused(bad, says):
    with pytest.raises(ValueError, match=says): T.check_views(bad)

def test_default_views():
    for kind in ('photos', 'symbols', 'above'): assert T.check_views(kind) == T.DEFAULT_VIEWS[kind]
    assert T.DEFAULT_VIEWS[True] == T.DEFAULT_VIEWS['photos'] and not any('flip' in v for v in T.DEFAULT_VIEWS[False])

# --- a Learner

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    from vision_ft.classify.kaggle import read_competition
    from vision_ft.classify.train import train
    c = read_competition(digits(tmp_path_factory.mktemp('d')/'digits', size=48))
    t = c.train.groupby('label').head(6).reset_index(drop=True)
    fit = lambda size, item: train(t[:40], t[40:], 'test_convnext', size=size, item=item, effective_bs=16, epochs=1, progress=False, device='cpu').learn
    return c.test[:30], fit(32, 'squish 48'), fit('32x64', 'crop 48x40')

@pytest.mark.parametrize('which', [1, 2])
@pytest.mark.parametrize('threads', [1, 2])
def test_plain_is_fastais_to_the_bit(trained, which, threads):
    table, learn, before = trained[0], trained[which], torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        p = T.predict_views(learn, table, ['plain', 'random1'], progress=False)['plain']
        with learn.no_bar(): q, _ = learn.get_preds(dl=learn.dls.test_dl(table), reorder=False)
    finally: torch.set_num_threads(before)
    assert np.array_equal(p.probs, q.numpy())

def test_workers_order_and_batches_do_not_matter(trained):
    table, learn, _ = trained
    run = lambda t, **kw: T.tta(learn, t, progress=False, **kw)
    a = run(table)
    assert np.array_equal(a.probs, run(table, num_workers=2).probs)
    for b in (run(table[::-1]), run(table, bs=7), run(table, bs=1)): assert abs(b.align(a).probs-a.probs).max() < 1e-5
    assert abs(run(table, seed=1).probs-a.probs).max() > 1e-6

def test_a_run_reads_no_more_than_it_needs_and_names_what_it_cannot_read(trained, tmp_path):
    "A Learner of `train`: reading size, a cache that changes no bit, errors in workers"
    from vision_ft.classify.train import _learner
    from vision_ft.classify.settings import TrainSettings
    table, s = trained[0], TrainSettings('test_convnext', size=32, item='squish 96', vocab=[str(i) for i in range(10)])
    rows = table.assign(label=[str(i%10) for i in range(len(table))])
    plain, cached = (_learner(rows, rows, s, 'cpu', 0, 16, cache=c) for c in (None, tmp_path/'cache'))
    assert next(iter(T._LearnerReader(T.ModelSpec(plain), table)))[1].shape[1:] == (3, 48, 48)
    want = T.tta(plain, table, progress=False)
    for workers in (0, 0, 2): assert np.array_equal(T.tta(cached, table, num_workers=workers, progress=False).probs, want.probs)
    (tmp_path/'broken.jpg').write_bytes(b'no image')
    for workers in (0, 1):
        with pytest.raises(DataError, match='broken.jpg cannot be read') as e:
            T.tta(plain, [*table.path, tmp_path/'broken.jpg'], num_workers=workers, progress=False)
        assert 'Traceback' not in str(e.value)

def test_views_look_where_the_plain_one_looks(trained):
    "At validation fastai cuts a 48x40 item to a square and squeezes that: a mirror image of it must come out of the matrix too"
    table, _, learn = trained
    dl = learn.dls.test_dl(table)
    before, geo, after = T._split_tfms(list(dl.after_batch.fs))
    ramp = torch.stack(torch.meshgrid(torch.linspace(0, 1, 48), torch.linspace(0, 1, 40), indexing='ij'))[[0, 1, 0]][None].repeat(2, 1, 1, 1)
    plain = T._apply_geometry(geo, ramp)
    assert plain.shape[-2:] == (32, 64)
    frame = T._measure_frame(lambda o: T._apply_geometry(geo, o), (48, 40))
    sampled = T._resample(T.MipMap(ramp), frame[None], 1., plain.shape[-2:])
    assert (sampled-plain)[..., 2:-2, 2:-2].abs().max() < .01
    assert frame[1, 1] < .9 < frame[0, 0]

def test_tta_by_kind_and_training_mode_kept(trained):
    table, learn, _ = trained
    learn.model.train()
    assert len(T.tta(learn, table[:3], flip='above', progress=False)) == 3 and learn.model.training
    with pytest.raises(ValueError, match='kind of images'): T.tta(learn, table, flip='abvoe')
    with pytest.raises(ValueError, match='come more than once'): T.predict_views(learn, pd.concat([table, table]), progress=False)
    with pytest.raises(ValueError, match='no images'): T.predict_views(learn, table[:0])

def test_half_precision_learner(trained):
    from fastai.callback.fp16 import MixedPrecision
    table, learn, _ = trained
    full = T.tta(learn, table, progress=False)
    with learn.added_cbs(MixedPrecision(amp_mode='bf16')): half = T.tta(learn, table, progress=False)
    assert 0 < abs(full.probs-half.probs).max() < .05

# --- plain models

class Net(nn.Module):
    "Sees colours and sides, so that views differ"
    def __init__(self, n=3, out=lambda z: z): super().__init__(); torch.manual_seed(0); self.lin, self.out = nn.Linear(12, n), out
    def forward(self, x): return self.out(self.lin(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)*5))

pics = [photo(1)[0]*i/9 for i in range(1, 10)]
def go(model, dl=None, views=('plain', 'hflip', 'random1'), **kw):
    return T.predict_views(T.ModelSpec(model, **kw), DataLoader(pics, batch_size=4) if dl is None else dl, views, progress=False)
cats = ['a', 'b', 'c']

@pytest.mark.parametrize('data', [pics, [(o, 1) for o in pics], [dict(y=1, pixel_values=o) for o in pics]])
def test_batches_of_any_kind(data):
    r = go(Net(), DataLoader(data, batch_size=4), vocab=cats)
    with torch.no_grad(): want = Net()(torch.stack(pics)).softmax(1)
    assert list(r) == ['plain', 'hflip', 'random1'] and list(r['plain'].ids) == [str(i) for i in range(9)]
    np.testing.assert_allclose(r['plain'].probs, want, atol=1e-6)

def test_ids_in_batches_survive_shuffling():
    names = [f'{i}.jpg' for i in range(9)]
    a = go(Net(), vocab=cats, ids=names)
    for data in ([dict(id=n, x=o) for n, o in zip(names, pics)], list(zip(pics, names))):
        b = go(Net(), DataLoader(data, batch_size=2, shuffle=True, num_workers=2), vocab=cats)
        for v in a: np.testing.assert_allclose(b[v].align(a[v]).probs, a[v].probs, atol=1e-6)

def test_binary_multi_output_and_multi_label():
    one = go(Net(1), vocab=['no', 'yes'])['plain']
    with torch.no_grad(): np.testing.assert_allclose(one.probs[:, 1], Net(1)(torch.stack(pics)).sigmoid()[:, 0], atol=1e-6)
    heads = dict(kind=cats, ripe=['no', 'yes'])
    d = go(Net(4, lambda z: dict(kind=z[:, :3], ripe=z[:, 3], feature=z)), vocab=heads)
    t = go(Net(4, lambda z: (z[:, :3], z[:, 3:])), vocab=heads)
    for o in heads:
        for v in d[o]: assert np.array_equal(d[o][v].probs, t[o][v].probs)
    labels = go(Net(3), vocab={c: ['no', 'yes'] for c in cats})
    with torch.no_grad(): np.testing.assert_allclose(np.stack([labels[c]['plain'].probs[:, 1] for c in cats], 1), Net(3)(torch.stack(pics)).sigmoid(), atol=1e-6)
    assert set(T.tta(T.ModelSpec(Net(3), {c: ['no', 'yes'] for c in cats}), DataLoader(pics), progress=False)) == set(cats)

def test_size_and_stats():
    seen = []
    net = Net(3); net.register_forward_pre_hook(lambda m, a: seen.append(a[0].shape))
    go(net, vocab=cats, size=24)
    assert {tuple(s[-2:]) for s in seen} == {(24, 24)}
    assert go(net, views=['darker'], vocab=cats)['darker'].probs.shape == (9, 3)

@pytest.mark.parametrize('model,kw,says', [
    (Net(), {}, 'pass vocab'), (Net(), dict(vocab=cats[:2]), 'for 2 classes'), (Net(out=lambda z: z.softmax(1)), dict(vocab=cats), 'without its softmax'),
    (Net(out=lambda z: dict(a=z)), dict(vocab=cats), 'as a dict'), (Net(out=lambda z: dict(a=z)), dict(vocab=dict(b=cats)), "names \\['b'\\]"),
    (Net(out=lambda z: (z, z)), dict(vocab=dict(a=cats)), '2 outputs'), (Net(out=lambda z: z*float('nan')), dict(vocab=cats), 'NaN'), (Net(), dict(vocab=cats, ids=['a', 'b']), 'fewer ids'),
    (Net(), dict(vocab=cats, ids=range(10)), '9 images came for 10 ids'), (Net(), dict(vocab=cats, dl=DataLoader(pics, shuffle=True)), 'shuffles'),
    (Net(), dict(vocab=cats, dl=DataLoader([(o*255).byte() for o in pics])), 'uint8'), (Net(), dict(vocab=cats, dl=DataLoader([1, 2])), 'no \\(B,C,H,W\\)'),
    (Net(), dict(vocab=cats, dl=DataLoader([o*4-2 for o in pics]), views=['hflip+darker']), 'pass stats')])
def test_refusals(model, kw, says):
    with pytest.raises(ValueError, match=says): go(model, **kw)

# --- averages, verdict, weights

def test_averages_by_name_not_by_position():
    a, b = go(Net(), vocab=cats, views=['plain', 'hflip']).values()
    shuffled = b.take(b.ids[::-1])
    np.testing.assert_allclose(T.average_views(dict(a=a, b=shuffled)).probs, (a.probs+b.probs)/2, atol=1e-6)
    np.testing.assert_allclose(T.average_views(dict(a=a, b=shuffled), dict(b=3)).probs, (a.probs+3*b.probs)/4, atol=1e-6)
    for w, says in ((dict(a=-1), '≥ 0'), (dict(a=0, b=0), 'not all 0'), (dict(a=float('nan')), 'finite'), (dict(c=1), "view 'c'")):
        with pytest.raises(ValueError, match=says): T.average_views(dict(a=a, b=b), w)

def test_fitted_view_weights():
    truth = {str(i): 'abc'[i%3] for i in range(9)}
    views = {v: p.with_targets(truth) for v, p in go(Net(), vocab=cats).items()}
    w = T.fit_view_weights(views, split=3).blend.ensemble_weights
    averaged = T.average_views(views, w)
    assert set(w) == set(views) and T.fit_view_weights(views, split=3).recommended == 'equal'
    assert abs(averaged.probs.sum(1)-1).max() < 1e-5 and compare_preds(views['plain'], averaged).n == 9

def views_of(n, spoil=True, seed=0):
    "Three views as good as each other but for the last"
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    def one(k): z = rng.normal(size=(n, 3)); z[np.arange(n), y] += k; e = np.exp(z); return Preds([str(i) for i in range(n)], cats, e/e.sum(1, keepdims=True), np.array(cats)[y])
    return dict(a=one(2), b=one(2), c=one(0 if spoil else 2))

def test_weights_pay_where_a_view_is_bad_and_not_where_all_are_alike():
    bad, alike = T.fit_view_weights(views_of(600)), T.fit_view_weights(views_of(600, spoil=False))
    assert bad.recommended == 'convex' and bad.blend.ensemble_weights['c'] < .1 and 'Use convex' in str(bad)
    assert alike.recommended == 'equal' and alike.table.gain['convex'] < .01 and 'Use equal weights' in str(alike)

def test_given_ids_win_and_strings_in_a_batch_are_ids():
    x = torch.rand(3, 3, 8, 8)
    batches = [(x, ['cat', 'dog', 'cow'])]
    assert list(go(Net(), batches, ['plain'], vocab=cats)['plain'].ids) == ['cat', 'dog', 'cow']
    assert list(go(Net(), batches, ['plain'], vocab=cats, ids=['1', '2', '3'])['plain'].ids) == ['1', '2', '3']

def test_views_on_their_side_need_squares():
    wide = torch.rand(1, 3, 8, 16)
    for v in ('rot90', 'hflip+transpose', 'rot270+darker'):
        with pytest.raises(ValueError, match='on their side'): T.apply_view(v, wide, ['a'])
    assert T.apply_view('rot90+rot90', wide, ['a']).shape == wide.shape
    assert T.check_views('above', (64, 64)) and T.check_views('photos', (320, 224))
    with pytest.raises(ValueError, match="view 'random01' does not exist"): T.check_views('random01')

# --- Learners of fastai's own factories

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Class folders, and the tables that fastai reads: (folder, Series of paths, table of chapter 10, DataFrame fname label)"
    from PIL import Image
    from vision_ft.data.tables import read_folder
    root = tmp_path_factory.mktemp('photos')
    rng = np.random.default_rng(0)
    for c in 'abc':
        (root/'train'/c).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(rng.integers(256, size=(40, 36, 3), dtype=np.uint8)).save(root/'train'/c/f'{c}{i}.png')
    table = read_folder(root/'train')
    rows = pd.DataFrame(dict(fname=['train/'+o for o in table.id], label=table.label))
    rows.to_csv(root/'labels.csv', index=False)
    return root, [Path(p) for p in table.path], table, rows

def parent(o): return Path(o).parent.name
def below(root): return lambda row: root/row.fname
def first_half(root): return lambda row: PILImage.create(root/row.fname).crop((0, 0, 18, 40))
def y_range(row): return float(ord(row.label))
def two_points(row): return [[1., 2.], [3., 4.]]

items = dict(item_tfms=Resize(32), bs=4, num_workers=0)
def block(photos, target=CategoryBlock, **kw):
    kw = {**dict(get_x=below(photos[0]), get_y=ColReader('label'), item_tfms=Resize(32)), **kw}
    return DataBlock((ImageBlock, target), **kw).dataloaders(photos[3], bs=4, num_workers=0, path=photos[0])

FACTORIES = dict(
    from_folder=lambda r, files, t, rows: ImageDataLoaders.from_folder(r/'train', valid_pct=.3, **items),
    from_name_func=lambda r, files, t, rows: ImageDataLoaders.from_name_func(r, files, lambda o: o[0], **items),
    from_path_func=lambda r, files, t, rows: ImageDataLoaders.from_path_func(r, [str(f) for f in files], parent, **items),
    from_name_re=lambda r, files, t, rows: ImageDataLoaders.from_name_re(r, files, '^(.)', **items),
    from_df=lambda r, files, t, rows: ImageDataLoaders.from_df(rows, r, **items),
    from_csv=lambda r, files, t, rows: ImageDataLoaders.from_csv(r, **items),
    from_lists=lambda r, files, t, rows: ImageDataLoaders.from_lists(r, files, t.label.tolist(), **items),
    get_x=lambda *o: block(o), vocab=lambda *o: block(o, CategoryBlock(vocab=['c', 'b', 'a'])))

def learner(dls, n=3, loss=None): return Learner(dls, Net(n), loss_func=loss or CrossEntropyLossFlat())

@pytest.mark.parametrize('factory', FACTORIES)
def test_learners_of_factories(photos, factory, tmp_path):
    root, files, table, rows = photos
    learn = learner(FACTORIES[factory](*photos))
    with learn.no_bar(): want = learn.get_preds(dl=learn.dls.test_dl(files))[0].numpy()
    views = T.predict_views(learn, table, ['plain', 'hflip'], progress=False)
    assert np.array_equal(views['plain'].probs, want) and list(views['plain'].vocab) == list(learn.dls.vocab)
    assert list(views['plain'].ids) == table.id.tolist() and not np.array_equal(views['hflip'].probs, want)
    relative = table.assign(path=rows.fname if learn.dls.path == root else table.id)
    for images in (relative, files, [str(f) for f in files], root/'train', str(root/'train')):
        assert np.array_equal(T.predict_views(learn, images, progress=False)['plain'].probs, want)
    assert np.array_equal(T.predict_views(learn, files[0], progress=False)['plain'].probs, want[:1])

@pytest.mark.parametrize('factory', ['from_folder', 'from_df', 'from_lists'])
def test_exported_and_loaded(photos, factory, tmp_path):
    learn = learner(FACTORIES[factory](*photos))
    before = T.tta(learn, photos[2], progress=False)
    learn.export(tmp_path/'learn.pkl')
    assert np.array_equal(T.tta(load_learner(tmp_path/'learn.pkl'), photos[2], progress=False).probs, before.probs)

def test_a_learner_that_cuts_its_images_itself_reads_rows(photos):
    root, files, table, rows = photos
    learn = learner(block(photos, get_x=first_half(root)))
    with learn.no_bar(): want = learn.get_preds(dl=learn.dls.test_dl(rows))[0].numpy()
    got = T.predict_views(learn, table.assign(fname=rows.fname), progress=False)['plain'].probs
    assert np.array_equal(got, want) and not np.array_equal(got, T.predict_views(learner(block(photos)), table, progress=False)['plain'].probs)

def test_multi_label_learner(photos):
    dls = block(photos, MultiCategoryBlock, get_y=lambda row: [row.label])
    learn = learner(dls, loss=BCEWithLogitsLossFlat())
    with learn.no_bar(): want = learn.get_preds(dl=dls.test_dl(photos[1]))[0].numpy()
    labels = T.predict_views(learn, photos[2], progress=False)
    assert list(labels) == ['a', 'b', 'c']
    np.testing.assert_allclose(np.stack([labels[c]['plain'].probs[:, 1] for c in 'abc'], 1), want, atol=1e-6)

def no_reading(monkeypatch):
    def refuse(*args, **kwargs): raise AssertionError('an image was opened')
    monkeypatch.setattr(Image, 'open', refuse)

@pytest.mark.parametrize('target,get_y', [(RegressionBlock, y_range), (PointBlock, two_points)])
def test_numbers_and_points_are_refused_before_reading(photos, target, get_y, monkeypatch):
    learn = learner(block(photos, target, get_y=get_y), loss=MSELossFlat())
    with learn.no_bar(): assert len(learn.get_preds(dl=learn.dls.test_dl(photos[1]))[0]) == 15 # the fix works
    no_reading(monkeypatch)
    for f in (T.predict_views, T.tta):
        with pytest.raises(SettingsError, match='averages probabilities of .*classes(.|\n)*Fix: use `learn.get_preds'): f(learn, photos[2])

def test_two_targets_need_their_names(photos):
    dls = DataBlock((ImageBlock, CategoryBlock, CategoryBlock), n_inp=1, get_x=below(photos[0]), item_tfms=Resize(32),
                    get_y=[ColReader('label'), ColReader('fname')]).dataloaders(photos[3], bs=4, num_workers=0)
    learn = Learner(dls, Net(5, lambda z: (z[:, :3], z[:, 3:])), loss_func=CrossEntropyLossFlat())
    with pytest.raises(SettingsError, match='ModelSpec'): T.tta(learn, photos[2])
    both = T.tta(T.ModelSpec(learn, dict(label=cats, half=['no', 'yes'])), photos[2], progress=False)
    assert set(both) == {'label', 'half'} and len(both['half']) == 15

def test_learners_that_read_no_single_image(photos):
    pair = DataBlock((ImageBlock, ImageBlock, CategoryBlock), n_inp=2, get_x=[below(photos[0])]*2, get_y=ColReader('label'),
                     item_tfms=Resize(32)).dataloaders(photos[3], bs=4, num_workers=0)
    loaders = DataLoaders(*(FastaiDataLoader([(o, 0) for o in pics], bs=4) for _ in range(2)))
    for dls in (pair, loaders):
        with pytest.raises(SettingsError, match='one image an item(.|\n)*ModelSpec'): T.tta(learner(dls), photos[2])
    learn = learner(block(photos))
    for dl in learn.dls.loaders: dl.after_batch = Pipeline([])
    with pytest.raises(SettingsError, match='IntToFloatTensor(.|\n)*ModelSpec'): T.tta(learn, photos[2])

@pytest.mark.parametrize('change,says', [
    (lambda t: t.drop(columns='path'), 'no column path'), (lambda t: t[['label']], 'no column id and no path'), (lambda t: t[:0], 'no images'),
    (lambda t: pd.concat([t, t]), '15 of 30 ids come more than once'), (lambda t: t.assign(path='nowhere.png'), '15 of 15 files do not exist'),
    (lambda t: t.assign(path=[None, *t.path[1:]]), '1 of 15 files do not exist'), (lambda t: [], 'no images'), (lambda t: 'new/*.jpg', 'no image is named like new'), (lambda t: Image.new('RGB', (9, 9)), 'Image names no files'), (lambda t: {'a': 1}, 'dict names no files'), (lambda t: [1, 2], 'int names no files'),
    (lambda t: DataLoader(pics), 'DataLoader names no files'), (lambda t: t.path.tolist()*2, 'more than once')])
def test_tables_that_do_not_fit(photos, change, says, monkeypatch):
    learn, images = learner(block(photos)), change(photos[2])
    no_reading(monkeypatch)
    with pytest.raises(DataError, match=says): T.tta(learn, images, progress=False)

def test_images_may_be_named_in_any_way(photos, tmp_path, monkeypatch):
    root, files, table, _ = photos
    monkeypatch.setenv('HOME', str(root))
    ways = [root/'train', str(root/'train'), '~/train', [root/'train'], [root/'train'/c for c in 'abc'], root/'train'/'*'/'*.png', str(root/'train'/'**'/'*.png'),
            files, tuple(map(str, files)), pd.Series(table.path), np.array(table.path), (f for f in files), iter(files), [*files[:5], root/'train'/'b', root/'train'/'c*'/'*']]
    for images in ways: assert image_table(images).path.tolist() == table.path.tolist()
    assert image_table(root/'train').id.tolist() == table.id.tolist()
    odd = root/'train'/'a'/'[1]*.png'
    odd.write_bytes(files[0].read_bytes())
    try: assert image_table(odd).path.tolist() == [str(odd)] # a file of that name is no pattern
    finally: odd.unlink()
    learn = learner(block(photos))
    for images in ([files[0]], files[0], str(files[0])): assert len(T.tta(learn, images, progress=False)) == 1

def test_a_name_does_not_change_what_is_seen(photos, tmp_path):
    "Random crops hang on what is in a file: the same under other names, in other folders and batches; other images get others"
    root, files, table, _ = photos
    (tmp_path/'deep').mkdir()
    copies = [tmp_path/'deep'/f'{9-i}.png' for i in range(3)]
    for f, c in zip(files, copies): c.write_bytes(f.read_bytes())
    learn, views = learner(block(photos)), ['random1', 'hflip+random2']
    one, two = (T.predict_views(learn, o, views, bs=bs, progress=False) for o, bs in ((files[:3], 3), (copies[::-1], 2)))
    for v in views: assert np.allclose(one[v].probs, two[v].probs[::-1], atol=1e-6)
    assert len({T.file_key(f) for f in files}) == len(files) and not np.array_equal(one['random1'].probs, T.predict_views(learn, files[:3], ['random1'], seed=1, progress=False)['random1'].probs)

@pytest.mark.parametrize('num_workers', [0, 2])
def test_an_unreadable_file_is_named(photos, tmp_path, num_workers):
    (tmp_path/'broken.png').write_bytes(photos[1][3].read_bytes()[:200])
    files = [*photos[1], tmp_path/'broken.png']
    learn = learner(FACTORIES['from_folder'](*photos))
    with pytest.raises(DataError, match='broken.png cannot be read(.|\n)*drop_unreadable'): T.tta(learn, files, num_workers=num_workers, progress=False)
    good, bad = drop_unreadable(image_table(files)) # the fix
    assert len(bad) == 1 and len(T.tta(learn, good, progress=False)) == 15

def test_what_is_no_model_or_no_vocab():
    with pytest.raises(SettingsError, match='no model and no Learner'): T.tta('convnext', 'images')
    for vocab in ('abc', ['a', 'a', 'b'], dict(kind=['a'])):
        with pytest.raises(SettingsError, match='each once'): T.ModelSpec(Net(), vocab)
    with pytest.raises(DataError, match='takes a dataloader'): go(Net(), pd.DataFrame(dict(id=['a'], path=['b'])), vocab=cats)
    with pytest.raises(DataError, match='more than once'): go(Net(), vocab=cats, ids=['a']*9)

def test_iterable_data_sets():
    class Stream(IterableDataset):
        def __iter__(self): return iter(pics)
    assert np.array_equal(go(Net(), DataLoader(Stream(), batch_size=4), vocab=cats)['plain'].probs, go(Net(), vocab=cats)['plain'].probs)
    with pytest.raises(DataError, match='shuffles'): go(Net(), DataLoader(Stream(), batch_size=4, num_workers=2), vocab=cats)

# --- losses and activations

@pytest.mark.parametrize('loss', [CrossEntropyLossFlat(), FocalLossFlat(), LabelSmoothingCrossEntropy(), nn.CrossEntropyLoss()])
def test_softmax_is_not_applied_twice(photos, loss):
    dls = block(photos)
    with pytest.raises(SettingsError, match='probabilities already(.|\n)*Fix: .*without its softmax'):
        T.tta(Learner(dls, Net(3, lambda z: z.softmax(1)), loss_func=loss), photos[2], progress=False)
    logs = Learner(dls, Net(3, lambda z: z.log_softmax(1)), loss_func=loss) # logits like any others
    logits = Learner(dls, Net(3), loss_func=loss)
    np.testing.assert_allclose(*(T.tta(o, photos[2], progress=False).probs for o in (logs, logits)), atol=1e-6)

def test_an_activation_that_keeps_probabilities_as_they_are(photos):
    learn = Learner(block(photos), Net(3, lambda z: z.softmax(1)), loss_func=BaseLoss(nn.NLLLoss)) # whose activation is the identity
    with learn.no_bar(): want = learn.get_preds(dl=learn.dls.test_dl(photos[1]))[0].numpy()
    assert np.array_equal(T.predict_views(learn, photos[2], progress=False)['plain'].probs, want)

def two_classes(photos): return DataBlock((ImageBlock, CategoryBlock(vocab=['no', 'yes'])), get_x=below(photos[0]), item_tfms=Resize(32),
    get_y=lambda row: 'yes' if row.label == 'a' else 'no').dataloaders(photos[3], bs=4, num_workers=0)

@pytest.mark.parametrize('loss', [MSELossFlat(), L1LossFlat(), nn.MSELoss(), nn.SmoothL1Loss(), nn.HuberLoss(), F.mse_loss, F.l1_loss,
                                  partial(F.smooth_l1_loss, beta=.5)])
def test_a_regression_loss_is_refused_before_reading(photos, loss, monkeypatch):
    learn = Learner(two_classes(photos), Net(1), loss_func=loss)
    with monkeypatch.context() as m:
        no_reading(m)
        with pytest.raises(SettingsError, match='loss is .*loss(.|\n)*Fix: use `learn.get_preds.*logits of classes, pass `ModelSpec'):
            T.tta(learn, photos[2], progress=False)
    logits = Learner(learn.dls, Net(1), loss_func=BCEWithLogitsLossFlat())
    for spec in (T.ModelSpec(learn, ['no', 'yes']), T.ModelSpec(logits, ['no', 'yes'])): # the fix, if they are logits
        assert T.tta(spec, photos[2], progress=False).probs.shape == (15, 2)
    wide = T.predict_views(T.ModelSpec(Learner(learn.dls, Net(2), loss_func=loss), ['no', 'yes']), photos[2], progress=False)
    np.testing.assert_allclose(wide['plain'].probs.sum(1), 1, atol=1e-6)

@pytest.mark.parametrize('loss', [BCELossFlat(), nn.BCELoss(), F.binary_cross_entropy])
def test_a_loss_of_probabilities_is_refused_and_the_fix_works(photos, loss, monkeypatch):
    learn = Learner(two_classes(photos), Net(1, lambda z: z.sigmoid()), loss_func=loss)
    with monkeypatch.context() as m:
        no_reading(m)
        with pytest.raises(SettingsError, match='takes probabilities(.|\n)*Fix: take the sigmoid off `learn.model`'): T.tta(learn, photos[2])
    learn.model, learn.loss_func = Net(1), BCEWithLogitsLossFlat()
    assert len(T.tta(learn, photos[2], progress=False)) == 15

# --- memory

class Small(nn.Module):
    "A model on a device that has room for n images"
    def __init__(self, n, error=torch.OutOfMemoryError('CUDA out of memory.'), k=3):
        super().__init__()
        self.net, self.n, self.error, self.seen = Net(k), n, error, []
    def forward(self, x):
        if len(x) > self.n: raise self.error
        self.seen.append(len(x))
        return self.net(x)

@pytest.mark.parametrize('error', [torch.OutOfMemoryError('CUDA out of memory.'), RuntimeError('MPS backend out of memory'), MemoryError()])
def test_out_of_memory_halves_the_batch_and_goes_on(photos, error):
    dls, views = block(photos), ['plain', 'hflip', 'random1']
    want = T.predict_views(learner(dls), photos[2], views, bs=8, progress=False)
    small = Small(3, error)
    with pytest.warns(UserWarning, match='out of memory: going on with batches of [42]') as told:
        got = T.predict_views(Learner(dls, small, loss_func=CrossEntropyLossFlat()), photos[2], views, bs=8, progress=False)
    assert len(told) == 2 and set(small.seen) <= {1, 2} and sum(small.seen) == 15*3 # no image twice
    for v in views:
        assert list(got[v].ids) == list(want[v].ids)
        np.testing.assert_allclose(got[v].probs, want[v].probs, atol=1e-6)

def test_out_of_memory_of_a_plain_model_and_several_outputs():
    kw = dict(vocab=dict(a=cats, b=['no', 'yes']), ids=[f'{i}.jpg' for i in range(9)])
    cut = lambda z: (z[:, :3], z[:, 3])
    small = Small(2, k=4)
    small.net.out = cut
    want = go(Net(4, cut), **kw)
    with pytest.warns(UserWarning, match='going on with batches of 2'): got = go(small, **kw)
    for o in want:
        for v in want[o]:
            assert list(got[o][v].ids) == kw['ids']
            np.testing.assert_allclose(got[o][v].probs, want[o][v].probs, atol=1e-6)

def test_out_of_memory_late_keeps_what_is_done(photos):
    "What was predicted before stays as it is to the bit"
    class Later(Small):
        def forward(self, x):
            if len(self.seen) == 2: self.n = 2 # another process took the memory
            return super().forward(x)
    later, dls = Later(99), block(photos)
    want = T.predict_views(learner(dls), photos[2], progress=False)['plain']
    with pytest.warns(UserWarning, match='going on with batches of 2'):
        got = T.predict_views(Learner(dls, later, loss_func=CrossEntropyLossFlat()), photos[2], progress=False)['plain']
    assert later.seen == [4, 4, 2, 2, 2, 1] and np.array_equal(got.probs[:8], want.probs[:8])
    np.testing.assert_allclose(got.probs, want.probs, atol=1e-6)

def test_no_memory_for_one_image_is_said(photos):
    learn = Learner(block(photos), Small(0), loss_func=CrossEntropyLossFlat())
    with pytest.warns(UserWarning, match='batches of 1'), pytest.raises(SettingsError, match='one image at a time(.|\n)*Fix: ') as e:
        T.tta(learn, photos[2], progress=False)
    assert e.value.__context__ is None # the error that held the memory is gone
    learn.model = Small(0, RuntimeError('mat1 and mat2 shapes cannot be multiplied'))
    with pytest.raises(RuntimeError, match='mat1'): T.tta(learn, photos[2], progress=False)

def test_out_of_memory_on_reading_says_bs(photos, monkeypatch):
    learn = learner(block(photos))
    def full(*args, **kwargs): raise torch.OutOfMemoryError('CUDA out of memory.')
    monkeypatch.setattr('fastai.data.load.DataLoader.create_batches', full)
    with pytest.raises(SettingsError, match='reading 4 images(.|\n)*bs=2'): T.tta(learn, photos[2], progress=False)
