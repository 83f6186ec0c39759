"Predictions by strangers, how different the members are, and what each adds"
import warnings
from dataclasses import replace
import numpy as np, pandas as pd, pytest
from hypothesis import given, strategies as st
from test_blend import quick, scramble, world, worlds
from vision_ft.blend import ensemble, mean_loss
from vision_ft.classify.ensemble import DIVERSITY, diversity, members_table, out_of_fold, weights_verdict
from vision_ft.core import DataError, Preds, SettingsError

# --- out of fold

@quick
@given(st.integers(12, 60), st.integers(2, 5), st.integers(0, 99))
def test_out_of_fold_predicts_each_once_by_a_stranger(n, k, seed):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(dict(id=[f'{i}.jpg' for i in rng.permutation(n)], label=[f'c{i % 3}' for i in range(n)], path='x'))
    split = table[['id', 'label']].assign(fold=rng.permutation(np.arange(n) % k))
    asked = []
    def fit(train, valid):
        assert not set(train.id) & set(valid.id) and len(train)+len(valid) == n and valid.fold.nunique() == 1
        asked.extend(valid.id)
        vocab = rng.permutation(['c0', 'c1', 'c2'])
        return Preds(rng.permutation(valid.id), vocab, np.tile(vocab == 'c1', (len(valid), 1)))
    p = out_of_fold(table, split, fit, 'p')
    assert sorted(asked) == sorted(table.id) and list(p.ids) == list(table.id) and list(p.targets) == list(table.label)
    assert set(p.labels) == {'c1'} and p.name == 'p'

def test_out_of_fold_says_what_is_wrong():
    table = pd.DataFrame(dict(id=list('abcdef'), label=list('xyxyxy'), path='p'))
    split = table.assign(fold=[0, 0, 0, 1, 1, 1])
    ok = lambda train, valid: Preds(valid.id, ['x', 'y'], np.full((len(valid), 2), .5))
    with pytest.raises(DataError, match='fold 0: 0 of its images were not predicted, 1 others'): out_of_fold(table, split, lambda a, b: Preds([*b.id, 'z'], ['x', 'y'], np.full((4, 2), .5)))
    with pytest.raises(SettingsError, match='fit must return Preds, got ndarray'): out_of_fold(table, split, lambda a, b: np.zeros(3))
    with pytest.raises(DataError, match='made for other data'): out_of_fold(table.iloc[:5], split, ok)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(out_of_fold(table, split, ok)) == 6

# --- how different

@quick
@given(worlds)
def test_diversity(preds):
    d = {m: diversity(preds, m).to_numpy() for m in DIVERSITY}
    wrong = np.array([p.wrong for p in preds], float)
    for m in d: np.testing.assert_allclose(d[m], d[m].T)
    np.testing.assert_allclose(np.diag(d['disagreement']), 0); np.testing.assert_allclose(np.diag(d['both_wrong']), wrong.mean(1))
    varied = wrong.std(1) > 0
    if varied.sum() > 1: np.testing.assert_allclose(d['correlation'][np.ix_(varied, varied)], np.corrcoef(wrong[varied]), atol=1e-9)
    q = d['q'][~np.isnan(d['q'])]
    assert (abs(q) <= 1+1e-12).all() and np.isnan(d['correlation'][~varied]).all()

def test_members_table():
    preds = world(13, 500, (2.5, 2., 1.))
    t = members_table(preds, {'m0': 2})
    assert t.ensemble_weight[:3].tolist() == [.5, .25, .25] and t.index[-1] == 'ensemble'
    without = ensemble(preds[1:], {'m1': .25, 'm2': .25})
    assert t.without['m0'] == without.error and t.adds['m0'] == pytest.approx(mean_loss(without)-mean_loss(ensemble(preds, {'m0': 2})), abs=1e-6)
    assert ((t.adds_low < t.adds) & (t.adds < t.adds_high))[:3].all() and ((t.low < t.error) & (t.error < t.high)).all()

def test_the_verdict_names_weights_only_where_they_pay():
    "Of a good and two poor members the good one gets more; of three alike nothing is to be gained"
    preds = world(8, 800, (3., 1., .5))
    says = weights_verdict(preds, dict(m0=1/3, m1=1/3, m2=1/3))
    fitted = {k: float(v) for k, v in (o.split('=') for o in says.split('--ensemble-weights ')[1].split())}
    assert ': Use ' in says and fitted['m0'] > .5 and sum(fitted.values()) == pytest.approx(1, abs=.01)
    same = [replace(preds[0], name=n) for n in 'abc']
    for used, keeps in ((dict(a=.5, b=.25, c=.25), 'Keep a×0.5'), (dict.fromkeys('abc', 1/3), 'Use equal weights: no gain')):
        says = weights_verdict(same, used)
        assert keeps in says and '--ensemble-weights' not in says
