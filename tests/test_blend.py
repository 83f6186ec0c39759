"What must hold for pools, fitted weights, temperatures and their nested estimates, whatever the predictions"
import inspect
from dataclasses import replace
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.metrics import log_loss as sk_log_loss
from vision_ft.blend import (EPS, METHODS, METRICS, POOLS, RECIPES, calibrate, calibration_error,
                             check_ensemble_weights, compare_blends, convex_weights, ensemble, fit_blend, fit_ensemble_weights,
                             log_loss, mean_loss, nested, pool_probs, reliability, stack_preds, temperature, true_columns)
from vision_ft.core import DataError, Preds, SettingsError

quick = settings(max_examples=25, deadline=None, derandomize=True)

def world(seed, n=120, skill=(2., 2., 2.), c=4, zeros=False):
    "Members with independent noise, as good as their skill"
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(c), rng.integers(c, size=n-c)]) # every class is there
    ids, vocab = [f'{i:04d}.jpg' for i in range(n)], [f'c{i}' for i in range(c)]
    probs = softmax(rng.normal(size=(len(skill), n, c)) + np.reshape(skill, (-1, 1, 1))*np.eye(c)[y], -1)
    if zeros:
        probs = np.where(probs < .4*probs.max(-1, keepdims=True), 0, probs)
        probs /= probs.sum(-1, keepdims=True)
    return [Preds(ids, vocab, p, np.array(vocab)[y], f'm{i}') for i, p in enumerate(probs)]

def scramble(preds, seed):
    "The same predictions: members, rows and classes in another order"
    rng = np.random.default_rng(seed)
    def other(p):
        cols = rng.permutation(len(p.vocab))
        return replace(p, vocab=p.vocab[cols], probs=p.probs[:, cols]).take(rng.permutation(p.ids))
    return [other(preds[i]) for i in rng.permutation(len(preds))]

worlds = st.builds(world, st.integers(0, 10**6), st.integers(40, 160), st.lists(st.floats(0, 4), min_size=1, max_size=7), st.integers(2, 6), st.booleans())

# --- pools

@quick
@given(worlds, st.integers(0, 99), st.sampled_from(sorted(POOLS)))
def test_pools_know_no_order(preds, seed, how):
    w = {p.name: i+1 for i, p in enumerate(preds)}
    a, b = ensemble(preds, w, how=how), ensemble(scramble(preds, seed), w, how=how)
    np.testing.assert_allclose(b.align(a).probs, a.probs, atol=1e-6)
    assert list(b.align(a).targets) == list(a.targets)

@quick
@given(worlds, st.sampled_from(['mean', 'geometric']))
def test_identical_members_are_one_member(preds, how):
    same = [replace(preds[0], name=n) for n in 'abc']
    np.testing.assert_allclose(ensemble(same, {'a': 3}, how=how).probs, preds[0].probs, atol=1e-6)

def test_binary_rank_mean_is_the_mean_rank():
    p = world(0, c=2)
    got = ensemble(p, how='rank')
    want = np.mean([pd.Series(o.probs[:, 1]).rank() for o in p], axis=0)/(len(p[0])+1)
    np.testing.assert_allclose(got.probs[:, 1], want, atol=1e-6)

@quick
@given(worlds, st.integers(0, 99))
def test_stacked_by_name(preds, seed):
    "Row i, column j of every member is image i, class j of the first; truth comes from whoever knows it"
    bare = [replace(p, targets=None) for p in scramble(preds, seed)]
    knowing = [replace(p, name=f'{p.name}, with targets') for p in scramble(preds, seed)]
    first, probs = stack_preds([bare[0], *knowing], truth=True)
    assert list(first.ids) == list(bare[0].ids) and probs.dtype == np.float64
    for p, stacked in zip([bare[0], *knowing], probs): np.testing.assert_array_equal(stacked, p.align(bare[0]).probs)
    assert list(first.vocab[true_columns(first)]) == list(preds[0].take(first.ids).targets)

# --- fitted weights

@quick
@given(worlds, st.integers(0, 99), st.sampled_from(sorted(METHODS)))
def test_weights_go_by_name(preds, seed, method):
    a, b = fit_ensemble_weights(preds, method), fit_ensemble_weights(scramble(preds, seed), method)
    assert a == b and list(a) == [p.name for p in preds]
    assert sum(a.values()) == pytest.approx(1, abs=1e-9) and min(a.values()) >= 0

@quick
@given(worlds, st.sampled_from(['mean', 'geometric']))
def test_convex_is_never_worse_than_any_weights_it_can_choose(preds, how):
    loss = lambda w: mean_loss(ensemble(preds, w, how=how))
    least = loss(fit_ensemble_weights(preds, 'convex', how=how))
    one = [{q.name: float(q is p) for q in preds} for p in preds]
    rng = np.random.default_rng(0)
    for w in [None, fit_ensemble_weights(preds, 'greedy', how=how), *one, *({p.name: v for p, v in zip(preds, rng.dirichlet(np.ones(len(preds))))} for _ in range(5))]: assert least <= loss(w)+1e-4

def test_convex_finds_the_optimum():
    preds = world(3, 800, (1., 2., 2.5, 0.))
    P, y = np.stack([p.probs for p in preds]).astype(float), np.array([int(t[1]) for t in preds[0].targets])
    q = P[:, np.arange(800), y]
    by_softmax = minimize(lambda z: -np.log(softmax(z)@q).mean(), np.zeros(4), method='Nelder-Mead', options=dict(maxiter=10000, xatol=1e-8, fatol=1e-12))
    assert mean_loss(ensemble(preds, fit_ensemble_weights(preds, 'convex'))) == pytest.approx(by_softmax.fun, abs=1e-6)

@quick
@given(worlds, st.sampled_from(sorted(METRICS)), st.sampled_from(sorted(POOLS)))
def test_one_greedy_bag_of_all_is_never_worse_than_the_best_member(preds, metric, how):
    w = fit_ensemble_weights(preds, 'greedy', metric, how, bags=1, share=1.)
    one = [mean_loss(ensemble(preds, {q.name: float(q is p) for q in preds}, how=how), metric) for p in preds]
    assert mean_loss(ensemble(preds, w, how=how), metric) <= min(one)+1e-5

def test_greedy_bags():
    preds = world(1, 300, (3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1))
    for kw in (dict(), dict(bags=3), dict(share=.2), dict(steps=0)):
        w = fit_ensemble_weights(preds, 'greedy', **kw)
        assert sum(w.values()) == pytest.approx(1, abs=1e-9) and w == fit_ensemble_weights(preds, 'greedy', **kw)
    narrow = fit_ensemble_weights(preds, 'greedy', share=.5)
    wide = fit_ensemble_weights(preds, 'greedy', share=1.)
    assert wide['m0']+wide['m1'] > narrow['m0']+narrow['m1'] # half a library often lacks the best

def test_convex_weights_against_em():
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet(np.ones(5)*.5, size=(4, 300)), rng.integers(5, size=300)
    p[2, np.arange(300), y] += .3
    p /= p.sum(-1, keepdims=True)
    w, t = np.full(4, .25), p[:, np.arange(300), y]
    for _ in range(20000): w = w*(t/(w@t)).mean(1)
    got = convex_weights(p, y)
    assert got.min() >= 0 and abs(got.sum()-1) < 1e-9 and np.log(got@t).mean() > np.log(w@t).mean()-1e-7
    np.testing.assert_allclose(got, w, atol=2e-3)

def test_same_error_is_decided_by_log_loss():
    sure = world(2, 200, (3.,))[0]
    unsure = replace(calibrate(sure, 3.), name='a') # the same labels; 'a' comes first in the alphabet
    assert fit_ensemble_weights([unsure, sure], 'greedy', 'error', bags=1) == {'a': 0, 'm0': 1}

def test_a_useless_member_gets_nothing():
    preds = world(5, 2000, (2.5, 2.5, 0.))
    noise = replace(preds[2], probs=np.random.default_rng(0).dirichlet(np.full(4, .2), 2000)) # sure, and wrong three times in four
    for method in ('greedy', 'convex'): assert fit_ensemble_weights([*preds[:2], noise], method)['m2'] < .02

def test_settings_of_greedy_are_listed():
    "Completion of fit_ensemble_weights shows what a bag can be told"
    known = inspect.signature(fit_ensemble_weights).parameters
    assert dict(bags=20, share=.5, steps=50).items() <= {k: p.default for k, p in known.items()}.items()
    with pytest.raises(TypeError): fit_ensemble_weights(world(0), 'greedy', bagz=3)

# --- losses and temperatures

@quick
@given(worlds)
def test_log_loss_is_scikit_learns(preds):
    for p in preds: assert mean_loss(p) == pytest.approx(sk_log_loss(p.targets, p.probs/p.probs.sum(1, keepdims=True), labels=p.vocab), rel=1e-3, abs=1e-5)

def test_log_loss_of_a_zero_is_finite():
    p = Preds('ab', 'xy', [[1, 0], [0, 1]], 'yy')
    assert mean_loss(p) == pytest.approx(-np.log(EPS)/2) and np.isfinite(ensemble([p, replace(p, name='q')], how='geometric').probs).all()

@quick
@given(worlds, st.floats(.1, 10))
def test_a_temperature_keeps_labels_and_mends(preds, T):
    for p in preds:
        hot = calibrate(p, T)
        ties = np.sort(p.probs, 1)[:, -1]-np.sort(p.probs, 1)[:, -2] < 1e-4
        assert (hot.labels == p.labels)[~ties].all()
        assert mean_loss(calibrate(p, temperature(p))) <= mean_loss(p)+1e-4

def test_temperature_is_recovered():
    rng = np.random.default_rng(0)
    p = softmax(1.5*rng.normal(size=(20000, 5)), -1)
    y = (p.cumsum(1) < rng.random((20000, 1))).sum(1).clip(0, 4) # labels drawn from p: calibrated by construction
    honest = Preds([f'{i}' for i in range(20000)], 'abcde', p, np.array(list('abcde'))[y])
    assert calibration_error(honest) < .015 and temperature(honest) == pytest.approx(1, abs=.03)
    for T in (.4, 2.5): assert temperature(calibrate(honest, T)) == pytest.approx(1/T, rel=.03) and calibration_error(calibrate(honest, T)) > .05
    assert reliability(honest).images.sum() == 20000

def test_reliability_by_hand():
    p = Preds('abcd', 'xy', [[.9, .1], [.8, .2], [.3, .7], [.6, .4]], 'xyyx')
    r = reliability(p, bins=2)
    assert r.images.tolist() == [4] and r.confidence.iloc[0] == pytest.approx(.75) and r.accuracy.iloc[0] == .75
    r = reliability(p, bins=4) # (.5,.75] holds .7 and .6, both right; (.75,1] holds .9, right, and .8, wrong
    assert r.accuracy.tolist() == [1, .5] and calibration_error(p, bins=4) == pytest.approx((2*.35+2*.35)/4)

# --- nested estimates

def test_held_rows_never_reach_the_fit():
    preds, split = world(7, 200, (2.5, 1., 1.)), pd.DataFrame(dict(id=[f'{i:04d}.jpg' for i in range(200)], fold=np.arange(200) % 4))
    first = preds[0].ids[split.fold == 0]
    for recipe in RECIPES:
        truth = dict(zip(preds[0].ids, preds[0].targets))
        lied = [p.with_targets({**truth, **{i: 'c0' for i in first}}) for p in preds] # other truth in fold 0
        a, b = (nested(o, recipe, split).take(first).probs for o in (preds, lied))
        np.testing.assert_array_equal(a, b)

@quick
@given(worlds, st.integers(0, 99), st.sampled_from([*RECIPES, 'geometric', 'rank', 'greedy+rank']))
def test_nested_knows_no_order(preds, seed, recipe):
    a, b = nested(preds, recipe, 4), nested(scramble(preds, seed), recipe, 4)
    np.testing.assert_allclose(a.probs, b.probs, atol=1e-4); assert list(a.ids) == list(b.ids)

def test_nothing_is_found_where_nothing_is():
    "150 worlds of equal members: hardly ever a false promise, zero held, and the estimate right on average"
    n, fresh = 200, world(10**6, 20000)
    P, y = np.stack([p.probs for p in fresh]), np.array([int(t[1]) for t in fresh[0].targets])
    worth = lambda w: log_loss(np.tensordot([*w.values()], P, 1), y).mean()
    equal, fold, rows = worth(dict(a=1/3, b=1/3, c=1/3)), np.arange(n) % 5, []
    for i in range(150):
        preds = world(i, n)
        r = compare_blends(preds, 'convex', pd.DataFrame(dict(id=preds[0].ids, fold=fold)), n_boot=300)
        assert r.recommended == ('convex' if r.table.low['convex'] > 0 else 'equal')
        fits = [fit_ensemble_weights([p.take(p.ids[fold != k]) for p in preds]) for k in range(5)]
        rows.append(dict(r.table.loc['convex'], true=equal-np.mean([worth(w) for w in fits])))
    d = pd.DataFrame(rows)
    assert (d.low > 0).mean() <= .03 and ((d.low <= 0) & (d.high >= 0)).mean() >= .88
    assert ((d.low <= d.true) & (d.true <= d.high)).mean() >= .93
    assert abs((d.gain-d.true).mean()) < 3*(d.gain-d.true).sem()

def test_a_real_gain_is_found():
    r = compare_blends(world(8, 800, (3., 1., .5)))
    assert r.recommended != 'equal' and r.table.low[r.recommended] > 0 and r.sentence.startswith('Use ') and repr(r) == r.sentence
    assert mean_loss(r.blend(world(8, 800, (3., 1., .5)))) < r.table.log_loss['equal']

def test_identical_members_have_nothing_to_gain():
    same = [replace(world(9)[0], name=n) for n in 'abc']
    r = compare_blends(same, ['greedy', 'convex', {'a': 2}])
    assert r.recommended == 'equal' and r.table.gain.abs().max() < 1e-9 and list(r.table.index) == ['equal', 'greedy', 'convex', 'a×2']

def test_rare_classes_may_miss_a_fold():
    preds = world(11, 60, c=3)
    lone = preds[0].targets.copy(); lone[lone == 'c2'] = 'c0'; lone[0] = 'c2' # one image of its class
    r = compare_blends([replace(p, targets=lone) for p in preds])
    assert np.isfinite(r.table.drop(index='equal').to_numpy(float)).all()

def test_more_recipes_wider_intervals():
    preds = world(12, 300, (2.5, 2., 1.5))
    one, many = compare_blends(preds, 'convex').table.loc['convex'], compare_blends(preds).table.loc['convex']
    assert one.gain == many.gain and one.low >= many.low-1e-12

# --- errors

def test_refusals():
    preds = world(14)
    with pytest.raises(SettingsError, match="method 'convx' does not exist"): fit_ensemble_weights(preds, 'convx')
    for f in (compare_blends, nested, fit_blend, fit_ensemble_weights):
        with pytest.raises(SettingsError, match="metric 'auc' does not exist"): f(preds, metric='auc')
    with pytest.raises(SettingsError, match="word of a recipe 'calibrate' does not exist"): compare_blends(preds, 'calibrate+convex')
    with pytest.raises(SettingsError, match="ensemble member 'vit' does not exist"): compare_blends(preds, {'vit': 2})
    with pytest.raises(SettingsError, match='same kind of thing twice'): fit_blend(preds, 'mean+geometric')
    with pytest.raises(SettingsError, match='not all 0'): check_ensemble_weights({'a': 0}, ['a'])
    with pytest.raises(DataError, match='no member has targets'): fit_ensemble_weights([replace(p, targets=None) for p in preds])
    with pytest.raises(DataError, match='images differ'): fit_ensemble_weights([preds[0], preds[1].take(preds[1].ids[:50])])
    with pytest.raises(DataError, match='classes differ'): ensemble([preds[0], replace(preds[1], vocab=['c0', 'c1', 'c2', 'c9'], targets=None)])
    with pytest.raises(DataError, match='this blend is of'): fit_blend(preds)(preds[:2])
    with pytest.raises(DataError, match='all images lie in one fold'): nested(preds, split=pd.DataFrame(dict(id=preds[0].ids, fold=0)))

# --- groups and the weights in use

def test_groups_stay_in_a_fold_and_widen_the_interval():
    preds = world(3, n=240)
    twins = [replace(p, ids=[f'{h}{i}' for h in 'ab' for i in p.ids], probs=np.concatenate([p.probs]*2), targets=np.concatenate([p.targets]*2)) for p in preds]
    who = {i: i[1:] for i in twins[0].ids} # each image is there twice
    one, two = compare_blends(preds, [{'m0': 3}]).table.loc['m0×3'], compare_blends(twins, [{'m0': 3}], groups=who).table.loc['m0×3']
    blind = compare_blends(twins, [{'m0': 3}]).table.loc['m0×3']
    assert two.gain == pytest.approx(one.gain) and two.high-two.low == pytest.approx(one.high-one.low, rel=.1)
    assert blind.high-blind.low < .8*(one.high-one.low)
    held = nested(twins, 'convex', groups=who)
    np.testing.assert_allclose(held.take([f'a{i}' for i in preds[0].ids]).probs, held.take([f'b{i}' for i in preds[0].ids]).probs)
    with pytest.raises(SettingsError, match='dealt into 2 to 240 folds'): nested(twins, split=300, groups=who)

def test_the_weights_in_use_are_what_others_have_to_beat():
    preds = world(0, n=300, skill=(3., 3., 0.))
    bad = {'m0': 0, 'm1': 0, 'm2': 1}
    c = compare_blends(preds, ['equal', 'convex'], against=bad)
    assert c.recommended == 'convex' and c.table.index[0] == 'm0×0 m1×0 m2×1' and c.table.gain['equal'] > 0
    kept = compare_blends(preds, [bad], against={'m0': 1, 'm1': 1, 'm2': 0})
    assert kept.sentence.startswith('Keep m0×1 m1×1 m2×0: no gain') and kept.blend.ensemble_weights['m2'] == 0

def test_few_images_choose_no_weights():
    c = compare_blends([p.take(p.ids[:40]) for p in world(0, skill=(5., 0.))], 'convex')
    assert c.recommended == 'equal' and '40 images are too few' in c.sentence
