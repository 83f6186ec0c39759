"Helped and hurt, the exact test and the interval, bounds from two counts, groups, the bootstrap, dealt folds"
from itertools import product
import numpy as np, pandas as pd, pytest
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

def test_nothing_changed_is_said():
    v = V.compare_preds(preds([0]*12+[1]*348), preds([0]*12+[1]*348))
    assert str(v).startswith('Nothing changed: of 360 images 3.33% are wrong') and 'became' not in str(v) and 'p =' not in str(v)
    moved = V.compare_preds(preds([0, 1]*50), preds([1, 0]*50)) # as many helped as hurt is a change
    assert moved.p == 1 and '50 became right, 50 became wrong' in str(moved)

@pytest.mark.parametrize('pair', [(94, 101), (preds([1]), 5), (5, preds([1]))])
def test_counts_have_a_function_of_their_own(pair):
    with pytest.raises(ValueError, match='call compare_counts'): V.compare_preds(*pair)

def test_wilson_by_hand():
    z2 = norm.ppf(.975)**2
    assert V.wilson(0, 30) == pytest.approx((0, z2/(30+z2))) and V.wilson(0, 0) == (0, 1)
    low, high = V.wilson(94, 2081)
    for p in (low, high): assert abs(94/2081-p)/(p*(1-p)/2081)**.5 == pytest.approx(z2**.5) # both ends solve the score equation
    assert V.wilson(94, 2081, level=.5)[0] > low

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
    b = V.compare_counts(94, 101, n=2081)
    assert b.p_min == pytest.approx(2/2**7) and .65 < b.p_max < .7 and b.most_changed == 9 and b.says == "can't tell" and b.low < 0 < b.high
    assert 'nothing here says that it helped' in str(b)

@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_bounds_hold_the_truth(pairs):
    plain, tta = (preds(o) for o in zip(*pairs))
    v, b = V.compare_preds(plain, tta), V.compare_counts(int(plain.wrong.sum()), int(tta.wrong.sum()), n=len(pairs))
    assert b.p_min <= v.p <= b.p_max and b.low-1e-9 <= v.low and v.high <= b.high+1e-9
    if v.p < .05: assert v.helped+v.hurt <= b.most_changed

@pytest.mark.parametrize('bad', [(94, 101, 50), (-1, 3, 10), (.0452, .0485, 2081), (1, 2, None), (0, 0, 0)])
def test_bounds_refuse(bad):
    with pytest.raises(ValueError, match='whole numbers'): V.compare_counts(*bad)

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

@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_sign_flip_p_of_all_signs(gains):
    sums = np.array([*product([-1, 1], repeat=len(gains))])@np.array(gains)
    assert V.sign_flip_p(gains) == pytest.approx((abs(sums) >= abs(sum(gains))).mean())

def test_one_large_group_and_many_small_ones_are_few():
    assert V.effective_groups([6]*20) == 20 and V.effective_groups([1]*20+[40]) < 3
    assert np.isnan(V.grouped_interval(np.ones(21), np.zeros(21), np.array([1]*20+[40]))).all()

# --- the bootstrap

def test_draws_are_whole_and_repeat():
    draws = np.concatenate([*V.draw_groups(7, 250, seed=3)])
    assert draws.shape == (250, 7) and (draws.sum(1) == 7).all()
    np.testing.assert_array_equal(draws[:120], np.concatenate([*V.draw_groups(7, 120, seed=3)])) # more draws, the same first ones
    assert abs(draws.mean(0)-1).max() < .25 and abs(draws.var(0)-6/7).max() < .3

@given(st.lists(st.integers(0, 15), min_size=1, max_size=40), st.integers(0, 99))
def test_groups_are_drawn_whole(groups, seed):
    def whole(items):
        times = pd.Series(items).value_counts()
        for g in set(groups):
            own = [times.get(i, 0) for i in range(len(groups)) if groups[i] == g]
            assert len(set(own)) == 1 # each member as often as the others
        return 0.
    V.bootstrap_interval(whole, len(groups), groups, n_boot=5, seed=seed)

def scores(seed, n=60, per=3):
    "Scores in [0,1] of items in groups, before and after"
    rng = np.random.default_rng(seed)
    ids, group = [f'{i}.jpg' for i in range(n*per)], np.repeat(np.arange(n), per)
    before = rng.beta(4, 2, n*per)
    after = (before+.05*rng.normal(size=n)[group]+.02*rng.normal(size=n*per)+.03).clip(0, 1)
    return pd.Series(before, ids), pd.Series(after, ids), dict(zip(ids, group))

def test_a_mean_by_either_function():
    before, after, group = scores(0)
    change = V.paired_bootstrap(before, after, groups=group, n_boot=300)
    by_items = V.bootstrap_interval(lambda i: (after-before).to_numpy()[i].mean(), len(before), [*group.values()], n_boot=300)
    assert (change.low, change.high) == pytest.approx(by_items) and change.diff == pytest.approx((after-before).mean())
    assert change.n == 180 and change.groups == 60 and change.low < change.diff < change.high and change.says == 'helped'

def test_joined_by_id_not_by_position():
    before, after, group = scores(1)
    there, back = V.paired_bootstrap(before, after, group), V.paired_bootstrap(after, before, group)
    assert V.paired_bootstrap(before, after.sample(frac=1, random_state=0), group) == there
    assert (there.low, there.high, there.diff) == pytest.approx((-back.high, -back.low, -back.diff)) and back.says == 'hurt'
    assert V.paired_bootstrap(before, after, group, higher_is_better=False).says == 'hurt'
    arrays = V.paired_bootstrap(before.to_numpy(), after.to_numpy(), [*group.values()])
    assert arrays == there
    wide = V.paired_bootstrap(before, after, group, level=.99)
    assert wide.low < there.low < there.high < wide.high and '99% interval' in str(wide)

def test_too_few_to_tell():
    before, after, group = scores(2, n=11)
    few = V.paired_bootstrap(before, after, group)
    assert np.isnan(few.low) and few.says == "can't tell" and 'too few items or groups' in str(few)
    assert np.isfinite(V.paired_bootstrap(before, after).low) # 33 items on their own

def test_no_change_no_verdict():
    before, *_ = scores(3)
    same = V.paired_bootstrap(before, before)
    assert (same.low, same.diff, same.high, same.says) == (0, 0, 0, "can't tell")

@pytest.mark.parametrize('after,says', [(pd.Series([1., 2.], list('ab')), 'the other has none'), ([1., np.nan], 'not finite'),
                                        ([1., 2., 3.], '1 items have one score of the two'), ([], 'have one score')])
def test_scores_that_do_not_fit(after, says):
    with pytest.raises(ValueError, match=says): V.paired_bootstrap([1., 2.], after)

@pytest.mark.parametrize('size,skewed', [(np.ones(15, int), False), (np.ones(40, int), True), (np.full(40, 6), False),
                                         (np.arange(40) % 9+1, False)])
def test_bootstrap_covers(size, skewed):
    "The share of 600 simulated sets whose 95% interval holds the true mean change, 0"
    rng, inside, group = np.random.default_rng(0), [], np.repeat(np.arange(len(size)), size)
    for seed in range(600):
        own = rng.exponential(size=len(size))-1 if skewed else rng.normal(size=len(size))
        change = own[group] + (size.max() > 1)*rng.normal(size=len(group))
        v = V.paired_bootstrap(0*change, change, groups=group, n_boot=400, seed=seed)
        inside.append(v.low <= 0 <= v.high)
    assert .915 < np.mean(inside) < .975

def test_joint_intervals_hold_together():
    "Of 400 sets of five means, all five intervals hold in about 95%, and each alone in more"
    rng, inside = np.random.default_rng(0), []
    for seed in range(400):
        d = rng.normal(size=(60, 5)) @ (np.eye(5)+.5)
        inside.append(abs(d.mean(0)) <= V.joint_half_widths(d, np.arange(60), n_boot=400, seed=seed))
    assert .91 < np.all(inside, 1).mean() < .98 and np.mean(inside) > .97

# --- folds

@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=12, max_size=60), st.integers(2, 4), st.integers(0, 99))
def test_no_group_is_torn(rows, k, seed):
    labels, groups = map(np.array, zip(*rows))
    if len(set(groups)) < k:
        with pytest.raises(ValueError, match='can be dealt into 2 to'): V.deal_folds(labels, groups, k, seed)
        return
    fold = V.deal_folds(labels, groups, k, seed)
    assert set(fold) <= set(range(k)) and (pd.Series(fold).groupby(groups).nunique() == 1).all()
    np.testing.assert_array_equal(fold, V.deal_folds(labels, groups, k, seed))

@given(st.integers(2, 5), st.integers(0, 99))
def test_images_on_their_own_are_dealt_evenly(k, seed):
    labels = np.repeat(['a', 'b', 'c'], [30, 17, 8])
    table = pd.crosstab(labels, V.deal_folds(labels, np.arange(55), k, seed))
    assert (table.max(axis=1)-table.min(axis=1)).max() <= 1
    rare = V.deal_folds(['a']*9+['b'], range(10), k, seed) # a class smaller than k: sizes alone, and no warning
    assert np.ptp(np.bincount(rare, minlength=k)) <= 1

# --- what can be seen at all

def test_power_by_enumeration():
    "Every outcome of eight images: helped, hurt, as before"
    n, diff, changed = 8, .6, .7
    p = dict(zip((1, -1, 0), ((changed+diff)/2, (changed-diff)/2, 1-changed)))
    seen = sum(np.prod([p[o] for o in way]) for way in product(p, repeat=n)
               if V.mcnemar(way.count(1), way.count(-1)) < .05 and way.count(1) > way.count(-1))
    assert V.mcnemar_power(n, diff, changed) == pytest.approx(seen)

@pytest.mark.parametrize('n,changed', [(33, .3), (100, .1), (360, .05), (2081, .2)])
def test_detectable_means_four_times_in_five(n, changed):
    "The verdict itself, on 2,000 simulated pairs of models that differ by the smallest visible difference"
    diff = V.detectable_difference(n, changed)
    draws = np.random.default_rng(1).multinomial(n, [(changed+diff)/2, (changed-diff)/2, 1-changed], size=2000)
    pairs, times = np.unique(draws[:, :2], axis=0, return_counts=True)
    says = [V.Verdict(n, int(g), int(h), int(g), int(h), float(V.mcnemar(g, h)), *V.paired_interval(int(g), int(h), n)).says for g, h in pairs]
    assert .77 < np.average([o == 'helped' for o in says], weights=times) < .83

@given(st.integers(0, 600), st.floats(.02, 1))
def test_a_visible_difference_is_possible(n, changed):
    "At most the share that changes sides; without one, six that are all helped (p = 1/32) come too seldom. In simulation it is seen 4 times in 5, a smaller one less often"
    diff = V.detectable_difference(n, changed)
    assert np.isnan(diff) == (V.binom.sf(5, n, changed) < .8)
    d = changed if np.isnan(diff) else diff
    g, h, _ = np.random.default_rng(n).multinomial(n, [(changed+d)/2, (changed-d)/2, 1-changed], size=4000).T
    seen = ((V.mcnemar(g, h) < .05) & (g > h)).mean()
    assert 0 < d <= changed and (seen < .83 if np.isnan(diff) else seen > .77)
    if d < .99*changed: assert seen < .83

@pytest.mark.parametrize('diff,changed', [(.366, .2), (0, .2), (-.1, .2), (.1, 1.2), (np.nan, .2)])
def test_a_difference_that_is_not_possible_is_refused(diff, changed):
    for ask in (lambda: V.mcnemar_power(20, diff, changed), lambda: V.images_needed(diff, changed)):
        with pytest.raises(ValueError, match='diff <= changed'): ask()

@pytest.mark.parametrize('size', [np.full(40, 6), np.random.default_rng(1).integers(1, 10, 90)])
def test_groups_that_move_as_one_are_worth_what_is_said(size):
    ids = [f'{g}/{k}' for g, n in enumerate(size) for k in range(n)]
    said = V.detectable(ids, {i: i.split('/')[0] for i in ids}, changed=.3)
    assert said.n == size.sum() and said.worth == int(V.effective_groups(size)) and said.needed > said.n
    changed = said.changed
    fates = np.random.default_rng(2).choice([1, -1, 0], p=[(changed+said.diff)/2, (changed-said.diff)/2, 1-changed], size=(1000, len(size)))
    seen = [V.sign_flip_p(size*f) < .05 and size@f > 0 for f in fates]
    assert .75 < np.mean(seen) < .86

def test_images_needed():
    for d, changed in ((.02, .2), (.02, .05), (.4, .5), (.2, .2), (1, 1)): # Connor's own example of 1987 has 23 for .4 of .5
        n = V.images_needed(d, changed)
        assert V.mcnemar_power(n, d, changed) >= .8 > V.mcnemar_power(n-1, d, changed)
        assert V.detectable_difference(n, changed) == pytest.approx(d, rel=.02) or d == changed
    assert 23 <= V.images_needed(.4, .5) <= 26 and 3900 < V.images_needed(.02, .2) < 4100

def test_few_images_show_nothing():
    for n, error in ((0, .2), (5, .9), (20, .27), (33, .2)):
        few = V.detectable(range(n), changed=error)
        assert np.isnan(few.diff) and f'no difference between two models can be seen, if {100*error:g}% of the images' in str(few)
    assert 'below 25 points are noise, if 27% of the images are right in only one' in str(V.detectable(range(33), changed=.27))

def test_short_plan_counts_images_and_groups():
    d = pd.DataFrame(dict(id=[f'{i}.jpg' for i in range(60)], label=['a']*40+['b']*20))
    lines = V.short_plan(d[::2], d[1::4], d[3::4], groups={'1.jpg': 'x', '5.jpg': 'x', '0.jpg': 'y', '3.jpg': 'z'}).splitlines()
    assert lines[0] == '30 images to train on, 15 for validation, 2 classes; smallest: b with 10 and 5.'
    assert lines[1].startswith('2 images lie in 1 group;') and 'worth 13' in lines[2] and lines[3].startswith('Test: 15 images: ')
