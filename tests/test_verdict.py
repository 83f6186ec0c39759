"Helped and hurt, the exact test and the interval, bounds from two counts, learned weights"
import numpy as np, pytest
from hypothesis import given, strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from vision_ft import verdict as V
from vision_ft.core import Preds

cats = ['a', 'b', 'c']

# --- verdict

def preds(right, n_class=3):
    "Predictions of class 0 or 1 where the truth is 0"
    right = np.asarray(right)
    return Preds([str(i) for i in range(len(right))], cats[:n_class], np.where(right[:, None], [.8, .1, .1], [.1, .8, .1])[:, :n_class], ['a']*len(right))

def test_verdict_counts():
    v = V.tta_verdict(preds([0, 0, 0, 1, 1, 1]), preds([1, 1, 0, 0, 1, 1]))
    assert (v.n, v.helped, v.hurt, v.unchanged, v.wrong_plain, v.wrong_tta) == (6, 2, 1, 3, 3, 2) and v.says == "can't tell" and v.p == 1
    v = V.tta_verdict(preds([0]*20+[1]*80), preds([1]*100))
    assert v.says == 'helped' and v.p < 1e-5 and v.high < 0 and '100 pictures 20 became right' in str(v)
    assert V.tta_verdict(preds([1]*100), preds([0]*20+[1]*80)).says == 'hurt'
    same = V.tta_verdict(preds([0, 1]*50), preds([0, 1]*50))
    assert same.p == 1 and same.low < 0 < same.high
    other = Preds(['0', '1'], cats, [[.8, .1, .1]]*2, ['b', 'b'])
    with pytest.raises(ValueError, match='disagree'): V.tta_verdict(preds([1, 1]), other)

def test_mcnemar_by_hand(): assert V.mcnemar(0, 7) == 2/2**7 and V.mcnemar(1, 8) == pytest.approx(20/512) and V.mcnemar(5, 5) == 1

@given(st.integers(0, 60), st.integers(0, 60))
def test_the_exact_test_is_the_stricter_one(g, h):
    low, high = V.paired_interval(g, h, 500)
    if V.mcnemar(g, h) < .05: assert not low <= 0 <= high

def test_says_needs_both_answers():
    v = V.tta_verdict(preds([0]*3+[1]*497), preds([1]*3+[0]*11+[1]*486))
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
    b = V.tta_verdict(94, 101, n=2081)
    assert b.p_min == 2/2**7 and .65 < b.p_max < .7 and b.most_changed == 9 and b.says == "can't tell" and b.low < 0 < b.high
    assert 'nothing here says that it helped' in str(b)

@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_bounds_hold_the_truth(pairs):
    plain, tta = (preds(o) for o in zip(*pairs))
    v, b = V.tta_verdict(plain, tta), V.tta_verdict(int(plain.wrong.sum()), int(tta.wrong.sum()), n=len(pairs))
    assert b.p_min <= v.p <= b.p_max and b.low-1e-9 <= v.low and v.high <= b.high+1e-9
    if v.p < .05: assert v.helped+v.hurt <= b.most_changed

@pytest.mark.parametrize('bad', [(94, 101, 50), (-1, 3, 10), (.0452, .0485, 2081), (1, 2, None), (0, 0, 0)])
def test_bounds_refuse(bad):
    with pytest.raises(ValueError, match='whole numbers'): V.tta_verdict(*bad)

# --- weights

def test_convex_weights_against_em():
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet(np.ones(5)*.5, size=(4, 300)), rng.integers(5, size=300)
    p[2, np.arange(300), y] += .3; p /= p.sum(-1, keepdims=True)
    w, t = np.full(4, .25), p[:, np.arange(300), y]
    for _ in range(20000): w = w*(t/(w@t)).mean(1)
    got = V.convex_weights(p, y)
    assert got.min() >= 0 and abs(got.sum()-1) < 1e-9 and np.log(got@t).mean() > np.log(w@t).mean()-1e-7
    np.testing.assert_allclose(got, w, atol=2e-3)

def views_of(n, spoil=True, seed=0):
    "Three views as good as each other but for the last"
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    def one(k): z = rng.normal(size=(n, 3)); z[np.arange(n), y] += k; e = np.exp(z); return Preds([str(i) for i in range(n)], cats, e/e.sum(1, keepdims=True), np.array(cats)[y])
    return dict(a=one(2), b=one(2), c=one(0 if spoil else 2))

def test_weights_pay_where_a_view_is_bad_and_not_where_all_are_alike():
    bad, alike = V.fit_view_weights(views_of(600)), V.fit_view_weights(views_of(600, spoil=False))
    assert bad.pays and bad.weights['c'] < .1 and 'They pay' in str(bad)
    assert not alike.pays and alike.gain < .01 and 'equal weights' in str(alike)
    assert abs(sum(bad.weights.values())-1) < 1e-9 and len(bad.preds) == 600

def test_weights_by_name_not_by_position():
    v = views_of(60); order = np.random.default_rng(1).permutation(60)
    a, b = V.fit_view_weights(v), V.fit_view_weights({k: v[k].take(v[k].ids[order]) for k in reversed(v)})
    assert a.weights == pytest.approx(b.weights, abs=1e-3) and a.gain == pytest.approx(b.gain, abs=1e-4)
    with pytest.raises(ValueError, match='k must be'): V.fit_view_weights(v, k=1)
