"Accumulated gradients are the full batch's, for whatever sizes and losses."
import tempfile
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from fastai.callback.core import Callback
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat, FocalLossFlat, LabelSmoothingCrossEntropyFlat, MSELossFlat
from fastai.optimizer import SGD
from vision_ft.accum import GradAccum, Windows

C, W = 5, torch.tensor([.1, .5, 1., 2., 7.])
LOSSES = dict(mean=CrossEntropyLossFlat, weighted=lambda: CrossEntropyLossFlat(weight=W), ignore=lambda: CrossEntropyLossFlat(ignore_index=2),
              weighted_ignore=lambda: CrossEntropyLossFlat(weight=W, ignore_index=0), smooth=lambda: LabelSmoothingCrossEntropyFlat(.1),
              smooth_weighted=lambda: CrossEntropyLossFlat(weight=W, label_smoothing=.2), sum=lambda: CrossEntropyLossFlat(reduction='sum'), focal=lambda: FocalLossFlat(weight=W))

class Record(Callback):
    order = 90
    def before_fit(self): self.grads, self.logged = [], []
    def before_step(self): self.grads.append(torch.cat([p.grad.flatten() for p in self.model.parameters()]).clone())
    def after_batch(self):
        if self.training: self.logged.append((float(self.learn.loss.detach()), len(self.learn.yb[0]), len(self.learn.pred)))

def run(data, bs, cbs, loss, shuffle_seed=None):
    torch.manual_seed(0)
    model, rec = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, C)), Record()
    dl = lambda b: DataLoader(data, bs=b, shuffle=False, drop_last=False)
    learn = Learner(DataLoaders(dl(bs), dl(64)), model, loss_func=loss, opt_func=SGD, cbs=[rec, *cbs], path=tempfile.gettempdir())
    learn.recorder.train_metrics = True # predictions and targets of the whole window are kept for metrics only
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.)
    return rec

@settings(max_examples=80, deadline=None)
@given(n=st.integers(1, 50), micro=st.integers(1, 20), effective=st.integers(1, 40), loss=st.sampled_from(sorted(LOSSES)), clip=st.booleans(), seed=st.integers(0, 999))
def test_gradient_loss_and_steps_are_the_full_batchs(n, micro, effective, loss, clip, seed):
    g = torch.Generator().manual_seed(seed)
    data = list(zip(torch.randn(n, 6, generator=g), torch.randint(C, (n,), generator=g)))
    extra = lambda: [GradientClip(.5)] if clip else []
    full, ours = run(data, effective, extra(), LOSSES[loss]()), run(data, micro, [GradAccum(effective), *extra()], LOSSES[loss]())
    assert len(ours.grads) == len(full.grads) == -(-n//effective)
    for (a, b), (la, na, pa), (lb, nb, pb) in zip(zip(ours.grads, full.grads), ours.logged, full.logged):
        if not torch.isfinite(b).all(): continue # nothing counts in the whole window: a mean over nothing, in both
        assert float((a-b).norm()) <= 1e-5*float(b.norm()) + 1e-7
        assert la == pytest.approx(lb, rel=1e-4, abs=1e-6)
        if 'ignore' not in loss: assert na == nb == pa == pb

def test_float64_agrees_to_its_own_digits():
    "Float32 rounding is what is left: in float64 the difference is a billionth of it"
    torch.manual_seed(0)
    x, y, m = torch.randn(64, 6).double(), torch.randint(C, (64,)), nn.Linear(6, C).double()
    loss = nn.CrossEntropyLoss(weight=W.double())
    loss(m(x), y).backward()
    full, m.weight.grad = m.weight.grad.clone(), None
    from vision_ft.accum import loss_shares
    parts = list(zip(x.split(20), y.split(20)))
    for (xb, yb), s in zip(parts, loss_shares(loss, [(yb,) for _, yb in parts])): (loss(m(xb), yb)*s).backward()
    assert float((m.weight.grad-full).norm()/full.norm()) < 1e-14

@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), bs=st.integers(1, 20), effective=st.integers(1, 40), drop=st.booleans())
def test_windows_hold_each_sample_once_and_in_order(n, bs, effective, drop):
    w = Windows(DataLoader(list(zip(torch.arange(n), torch.arange(n))), bs=bs, shuffle=False, drop_last=drop), effective)
    seen = [[int(o) for b in w.window for o in b[0]] for _ in w]
    used = n-n%bs if drop else n
    assert sum(seen, []) == list(range(used)) and len(seen) == len(w)
    assert all(len(s) == effective for s in seen[:-1]) and all(len(s) <= effective for s in seen)

def test_regression_and_batches_larger_than_the_window():
    data = [(torch.randn(6), torch.randn(C)) for _ in range(30)]
    full, ours = run(data, 8, [], MSELossFlat()), run(data, 16, [GradAccum(8)], MSELossFlat())
    assert len(full.grads) == len(ours.grads) == 4
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(ours.grads, full.grads))

def test_samplers_decide_how_many_steps():
    from torch.utils import data as D
    ds = D.TensorDataset(torch.randn(100, 6), torch.randint(C, (100,)))
    for dl in (D.DataLoader(ds, batch_size=8, sampler=D.SubsetRandomSampler(range(40))), D.DataLoader(ds, batch_size=8, drop_last=True),
               D.DataLoader(ds, batch_size=8, sampler=D.WeightedRandomSampler(torch.ones(100), 250)),
               D.DataLoader(ds, batch_sampler=D.BatchSampler(D.SequentialSampler(ds), 8, True))):
        w = Windows(dl, 16)
        assert len(w) == sum(1 for _ in w)

def test_nested_batches_are_cut():
    dl = DataLoader([((torch.randn(6), torch.randn(6)), torch.tensor(i%C)) for i in range(40)], bs=24, shuffle=False)
    w = Windows(dl, 16)
    assert [[len(b[1]) for b in w.window] for _ in w] == [[16], [8, 8], [8]]

def test_an_interrupted_fit_leaves_nothing():
    class Stop(Callback):
        order = 95
        def after_backward(self): raise KeyboardInterrupt
    data = [(torch.randn(6), torch.tensor(i%C)) for i in range(32)]
    torch.manual_seed(0)
    model, rec = nn.Linear(6, C), Record()
    dl = DataLoader(data, bs=8, shuffle=False)
    learn = Learner(DataLoaders(dl, dl), model, loss_func=CrossEntropyLossFlat(), opt_func=SGD, cbs=[rec, GradAccum(16)], path=tempfile.gettempdir())
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(KeyboardInterrupt): learn.fit(1, 0., cbs=Stop())
        learn.fit(1, 0.)
    x, y = (torch.stack(o) for o in zip(*data[:16]))
    g = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    assert torch.allclose(rec.grads[0], torch.cat([o.flatten() for o in g]), atol=1e-6)
