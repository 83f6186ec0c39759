"What a network has to beat"
from types import SimpleNamespace
import numpy as np, pytest
from vision_ft.core import DataError, Preds
from vision_ft.classify import baselines as B
from vision_ft.classify.baselines import BASELINES, baseline_verdict, choose_c, fit_baselines, linear_probe, named_probes, probe_verdict
from vision_ft.data.tables import read_folder
from vision_ft.samples import digits

def net(**given): return SimpleNamespace(**dict(arch='tiny_convnext', pretrained='tiny', size=32, model_args={}) | given)

@pytest.fixture
def halves(tmp_path):
    t = read_folder(digits(tmp_path/'d')/'train_images').groupby('label').head(20)
    return t.iloc[::2], t.iloc[1::2]

def test_baselines_predict_each_table(halves):
    train, test = halves
    (largest, svc), = fit_baselines(train, [test])
    assert [largest.name, svc.name] == list(BASELINES) and (largest.ids == test.id.to_numpy()).all()
    truth = dict(zip(test.id, test.label))
    assert svc.with_targets(truth).error < .3 < largest.with_targets(truth).error

def test_a_probe_stands_beside_them_once_for_each_network(halves, monkeypatch):
    "Seeds and batches make no other probe; sizes, weights and networks do; random weights have none"
    train, test = halves
    computed, features = [], B.frozen_features
    monkeypatch.setattr(B, 'frozen_features', lambda paths, *a: computed.append(len(paths)) or features(paths, *a))
    nets = [net(), net(seed=2), net(size=(32, 32)), net(arch='tiny_vit', pretrained=None)]
    got = fit_baselines(train, [test, train], probes=nets)
    assert [[p.name for p in row] for row in got] == [[*BASELINES, 'linear probe tiny_convnext 32']]*2
    assert computed == [len(train), len(test), len(train)]
    truth = dict(zip(test.id, test.label))
    assert got[0][-1].with_targets(truth).error < .2 < got[0][0].with_targets(truth).error
    again, = linear_probe(net(), train, [test])
    assert np.array_equal(again.probs, got[0][-1].probs)
    more = named_probes([net(), net(size=64), net(pretrained='a.pth'), net(size=(32, 64)), net(arch='tiny_swin')])
    assert list(more) == [f'linear probe {n}' for n in ('tiny_convnext 32', 'tiny_convnext 64', 'tiny_convnext 32 (3)',
                                                        'tiny_convnext 32x64', 'tiny_swin 32')]

def test_c_is_chosen_with_copies_together():
    "Noise: the weakest features must not look good because their copies are known"
    rng = np.random.default_rng(0)
    x, y = np.tile(rng.normal(size=(60, 40)), (4, 1)), np.tile(np.arange(60)%3, 4)
    assert choose_c(x, y, np.tile(np.arange(60), 4)) < 1e-2 < choose_c(x, y)

def test_a_class_that_no_cross_validation_can_divide_is_named():
    x = np.random.default_rng(0).normal(size=(6, 4))
    for y, codes in ((list('aabbbc'), None), (list('aabbcc'), [0, 1, 2, 3, 4, 4])): # one image; one group
        with pytest.warns(UserWarning, match='^c: one image or one group.* it is 0.1.'): assert choose_c(x, np.array(y), codes) == sorted(B.C_GRID)[3]

def test_workers_read_the_same_and_progress_is_kept(halves, monkeypatch):
    train, test = (t.groupby('label').head(5) for t in halves)
    plain = fit_baselines(train, [test], probes=[net()], progress=False)
    bars, tqdm = [], B.tqdm
    monkeypatch.setattr(B, 'tqdm', lambda *a, disable, **k: bars.append(disable) or tqdm(*a, disable=disable, **k))
    read = fit_baselines(train, [test], probes=[net()], num_workers=2, progress=False)
    for a, b in zip(plain[0], read[0]): assert np.array_equal(a.probs, b.probs)
    assert bars == [True]*4
    for wrong in ((train.drop(columns='path'), [test]), (train, [test.drop(columns='id')]), (train, [list(test.path)])):
        for fit in (fit_baselines, lambda *a: linear_probe(net(), *a)):
            with pytest.raises(DataError, match='is no table|the table has no column'): fit(*wrong)

@pytest.mark.parametrize('wrong_probe, wrong_tuned, words', [
    (40, 10, 'fine-tuning beats'), (12, 10, 'not told apart from'), (10, 10, 'level with'), (0, 0, 'level with'), (10, 12, 'not told apart from'), (10, 30, '--epochs 15 --retrain')])
def test_the_verdict_has_three_ends(wrong_probe, wrong_tuned, words):
    def preds(wrong):
        said = np.eye(2)[(np.arange(100) < wrong).astype(int)]
        return Preds([str(i) for i in range(100)], ['a', 'b'], said, ['a']*100, 'net')
    text = probe_verdict(preds(wrong_probe), preds(wrong_tuned))
    assert words in text and f'{100-wrong_tuned} of 100 images right, its probe {100-wrong_probe} ' in text
    assert (' by 100 images (p = ' in text) == (words == 'not told apart from') and text.replace('its probe', 'the net').replace('the frozen features', 'the net') == baseline_verdict(preds(wrong_probe), preds(wrong_tuned))
    alike = {str(i): 'one' for i in range(100)}
    assert 'nan' not in probe_verdict(preds(wrong_probe), preds(wrong_tuned), alike)
