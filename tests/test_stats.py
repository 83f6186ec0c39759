"Helped and hurt, the exact test and the interval, bounds from two counts, images in groups"
from itertools import product
import numpy as np, pytest
from hypothesis import given, strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from vision_ft import stats as V
from vision_ft.core import Preds

cats = ['a', 'b', 'c']

# --- verdict

def preds(right, n_class=3):
    "Predictions of class 0 or 1 where the truth is 0"
    right = np.asarray(right)
    return Preds([str(i) for i in range(len(right))], cats[:n_class], np.where(right[:, None], [.8, .1, .1], [.1, .8, .1])[:, :n_class], ['a']*len(right))

def test_verdict_counts():
    v = V.compare_preds(preds([0, 0, 0, 1, 1, 1]), preds([1, 1, 0, 0, 1, 1]))
    assert (v.n, v.helped, v.hurt, v.unchanged, v.wrong_before, v.wrong_after) == (6, 2, 1, 3, 3, 2) and v.says == "can't tell" and v.p == 1
    v = V.compare_preds(preds([0]*20+[1]*80), preds([1]*100))
    assert v.says == 'helped' and v.p < 1e-5 and v.high < 0 and '100 images 20 became right' in str(v)
    assert V.compare_preds(preds([1]*100), preds([0]*20+[1]*80)).says == 'hurt'
    same = V.compare_preds(preds([0, 1]*50), preds([0, 1]*50))
    assert same.p == 1 and same.low < 0 < same.high
    other = Preds(['0', '1'], cats, [[.8, .1, .1]]*2, ['b', 'b'])
    with pytest.raises(ValueError, match='disagree'): V.compare_preds(preds([1, 1]), other)

def test_mcnemar_by_hand(): assert V.mcnemar(0, 7) == pytest.approx(2/2**7) and V.mcnemar(1, 8) == pytest.approx(20/512) and V.mcnemar(5, 5) == 1

@given(st.integers(0, 60), st.integers(0, 60))
def test_the_exact_test_is_the_stricter_one(g, h):
    low, high = V.paired_interval(g, h, 500)
    if V.mcnemar(g, h) < .05: assert not low <= 0 <= high

def test_says_needs_both_answers():
    v = V.compare_preds(preds([0]*3+[1]*497), preds([1]*3+[0]*11+[1]*486))
    assert v.p > .05 and v.low > 0 and v.says == "can't tell" and 'too little to tell' in str(v)

@given(st.integers(2, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n).flatmap(lambda g: st.tuples(st.just(g), st.integers(0, n-g))))))
def test_interval_inverts_the_score_test(o):
    "At both ends the score statistic, its nuisance rate found by direct maximisation of the likelihood, is the critical value"
    n, (g, h) = o
    low, high = V.paired_interval(g, h, n)
    assert -1 <= low <= (h-g)/n <= high <= 1
    assert np.allclose(V.paired_interval(h, g, n), (-high, -low), atol=1e-6)
    for d in (low, high):
        if abs(d) > .999: continue
        nll = lambda q: -(g*np.log(max(q, 1e-300)) + h*np.log(max(q+d, 1e-300)) + (n-g-h)*np.log(max(1-2*q-d, 1e-300)))
        q = minimize_scalar(nll, bounds=(max(0, -d), (1-d)/2), method='bounded', options=dict(xatol=1e-12)).x
        z = abs(h-g-n*d)/np.sqrt(n*(2*q+d*(1-d)))
        assert z == pytest.approx(norm.ppf(.975), rel=2e-2)

@pytest.mark.parametrize('n,p_help,p_hurt', [(33, .1, .1), (50, .06, .02), (200, .03, .01), (360, .03, .01), (2081, .01, .013)])
def test_interval_covers(n, p_help, p_hurt):
    "The share of 4,000 simulated sets whose 95% interval holds the true difference"
    draws = np.random.default_rng(0).multinomial(n, [p_help, p_hurt, 1-p_help-p_hurt], size=4000)[:, :2]
    pairs, counts = np.unique(draws, axis=0, return_counts=True)
    inside = [low <= p_hurt-p_help <= high for low, high in (V.paired_interval(int(g), int(h), n) for g, h in pairs)]
    assert .935 < np.average(inside, weights=counts) < .975

def test_bounds_of_the_source():
    b = V.compare_preds(94, 101, n=2081)
    assert b.p_min == pytest.approx(2/2**7) and .65 < b.p_max < .7 and b.most_changed == 9 and b.says == "can't tell" and b.low < 0 < b.high
    assert 'nothing here says that it helped' in str(b)

@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_bounds_hold_the_truth(pairs):
    plain, tta = (preds(o) for o in zip(*pairs))
    v, b = V.compare_preds(plain, tta), V.compare_preds(int(plain.wrong.sum()), int(tta.wrong.sum()), n=len(pairs))
    assert b.p_min <= v.p <= b.p_max and b.low-1e-9 <= v.low and v.high <= b.high+1e-9
    if v.p < .05: assert v.helped+v.hurt <= b.most_changed

@pytest.mark.parametrize('bad', [(94, 101, 50), (-1, 3, 10), (.0452, .0485, 2081), (1, 2, None), (0, 0, 0)])
def test_bounds_refuse(bad):
    with pytest.raises(ValueError, match='whole numbers'): V.compare_preds(*bad)

# --- groups

@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5)), min_size=1, max_size=30))
def test_a_coin_for_each_group(rows):
    "Against all 2^G ways in which the groups could have turned; a group of one is an image"
    plain, tta = (preds([r[i] for r in rows]) for i in (0, 1))
    group = {str(i): r[2] for i, r in enumerate(rows)}
    d = np.bincount(list(group.values()), [int(b)-int(a) for a, b, _ in rows], minlength=6)
    turned = np.array(list(product([-1, 1], repeat=6)))@d
    v = V.compare_preds(plain, tta, groups=group)
    if len(set(group.values())) < len(rows): assert v.p == pytest.approx((abs(turned) >= abs(d.sum())-.5).mean())
    assert np.isnan(v.low) or -1 <= v.low <= v.diff <= v.high <= 1
    alone = V.compare_preds(plain, tta, groups={str(i): f'g{i}' for i in range(len(rows))})
    assert alone == V.compare_preds(plain, tta) and (np.isnan(v.low) or v.high-v.low >= alone.high-alone.low-1e-9)

def test_many_small_groups_take_no_time():
    rng = np.random.default_rng(0)
    a, b = preds(rng.random(20_000) < .9), preds(rng.random(20_000) < .9)
    v = V.compare_preds(a, b, groups={str(i): i//2 for i in range(20_000)})
    assert v.groups == 10_000 and v.p == pytest.approx(V.compare_preds(a, b).p, abs=.1)

@pytest.mark.parametrize('bad', [(5, 5, 3), (-1, 2, 10)])
def test_interval_refuses(bad):
    with pytest.raises(ValueError, match='not possible'): V.paired_interval(*bad)
