"Predictions keep their names: whatever the order of rows, columns and members, the same numbers belong to the same images."
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from vision_ft.core import Preds, load_preds
from vision_ft.classify.ensemble import ensemble, wilson

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
