"Accumulated gradients are the full batch's, for whatever sizes and losses; what can't be is refused."
import pickle, tempfile, warnings
from functools import partial
import pytest, torch, torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils import data as D
from fastai.callback.core import Callback, CancelBackwardException, CancelBatchException, CancelEpochException, CancelFitException, CancelStepException, CancelTrainException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat, FocalLossFlat, LabelSmoothingCrossEntropyFlat, MSELossFlat
from fastai.optimizer import SGD
from vision_ft.accum import (GradAccum, History, ListBatch, StepBar, TensorBatch, Windows, closed_autocast, halve_on_oom,
                             loss_shares, n_samples)
from vision_ft.core import SettingsError

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

# ---- losses that can't be looked into

def samples(n=37, d=6, c=C, seed=0):
    g = torch.Generator().manual_seed(seed)
    return list(zip(torch.randn(n, d, generator=g), torch.randint(c, (n,), generator=g)))

def fit(bs, cbs=(), loss=None, data=None, model=None, dl=None, lr=.1, train_metrics=False, epochs=1):
    "A Learner after a fit; its gradients are in `.record`"
    data = samples() if data is None else data
    torch.manual_seed(0)
    dls = DataLoaders(*[DataLoader(data, bs=b, shuffle=False, drop_last=False) if dl is None else dl for b in (bs, 64)])
    learn = Learner(dls, model or nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, C)), loss_func=loss or CrossEntropyLossFlat(),
                    opt_func=SGD, cbs=[Record(), *cbs], path=tempfile.gettempdir())
    learn.recorder.train_metrics = train_metrics
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, lr)
    return learn

def same(a, b, tol=1e-5):
    "Whether two Learners made the same steps"
    assert len(a.record.grads) == len(b.record.grads) > 0
    assert max(float((p-q).norm()/q.norm()) for p, q in zip(a.record.grads, b.record.grads)) < tol
    return True

class Wrapped(nn.Module):
    "A Module around a weighted cross-entropy, with a penalty"
    def __init__(self):
        super().__init__()
        self.ce = nn.CrossEntropyLoss(weight=W)
    def forward(self, pred, y): return self.ce(pred, y) + .1*pred.pow(2).mean()

class OwnCE(nn.CrossEntropyLoss):
    "A subclass that is not what its name says"
    def forward(self, pred, y): return super().forward(pred, y)*len(y)

def dice(pred, y):
    probs, hot = pred.softmax(1), F.one_hot(y, C)
    return 1 - (2*(probs*hot).sum(0)/(probs+hot).sum(0)).mean()

class FocalDice:
    "A mean and a sum in one: no denominator"
    def __call__(self, pred, y): return FocalLossFlat()(pred, y) + dice(pred, y)*len(y)

def contrastive(pred, y):
    z = F.normalize(pred)
    return F.cross_entropy(z@z.T/.1 - 1e4*torch.eye(len(z)), torch.arange(len(z)).flip(0))

def weighted(pred, y): return F.cross_entropy(pred, y, weight=W)

class CalledCE(nn.CrossEntropyLoss):
    def __call__(self, pred, y): return weighted(pred, y)

class CalledFlat(CrossEntropyLossFlat):
    def __call__(self, pred, y): return weighted(pred, y)

class CalledSmoothing(LabelSmoothingCrossEntropyFlat):
    def __call__(self, pred, y): return weighted(pred, y)

def patched():
    "PyTorch's, with a `forward` of the object's own"
    loss = nn.CrossEntropyLoss()
    loss.forward = weighted
    return loss

def hooked():
    "PyTorch's, with a hook that changes its value"
    loss = nn.CrossEntropyLoss()
    loss.register_forward_hook(lambda module, args, value: weighted(*args))
    return loss

HIDDEN = dict(called=CalledCE(), called_flat=CalledFlat(), called_smoothing=CalledSmoothing(), patched=patched(), hooked=hooked(), weights=lambda p, y: F.cross_entropy(p, y, weight=W), ignored=lambda p, y: F.cross_entropy(p, y, ignore_index=2), module=Wrapped(),
              subclass=OwnCE(), focal_dice=FocalDice(), dice=dice, contrastive=contrastive, sum=lambda p, y: F.cross_entropy(p, y, reduction='sum'))

@pytest.mark.parametrize('name', HIDDEN)
def test_a_loss_that_does_not_add_up_is_refused_before_the_first_step(name):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, C))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(SettingsError, match='denominator='): fit(4, [GradAccum(16)], HIDDEN[name], model=model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    fit(4, [GradAccum(16, check=False)], HIDDEN[name]) # what the error offers
    assert same(fit(16, [GradAccum(16)], HIDDEN[name]), fit(16, [], HIDDEN[name]))

def test_equal_predictions_hide_nothing():
    "A head of zeros gives every sample the same loss: values agree, gradients don't"
    model = nn.Linear(6, C)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    with pytest.raises(SettingsError, match='denominator='): fit(4, [GradAccum(16)], HIDDEN['weights'], model=model)

def test_a_denominator_of_ones_own_makes_hidden_means_exact():
    for name, own in dict(weights=lambda f, y: W[y].sum(), ignored=lambda f, y: int((y != 2).sum())).items():
        assert same(fit(5, [GradAccum(16, denominator=own)], HIDDEN[name]), fit(16, [], HIDDEN[name]))
    with pytest.raises(SettingsError, match='off'): fit(5, [GradAccum(16, denominator=lambda f, y: 1.)], HIDDEN['weights'])

def test_a_denominator_may_take_the_predictions():
    sure = lambda p: p.detach().softmax(1).amax(1) > .22
    loss = lambda p, y: F.cross_entropy(p, y, reduction='none')[sure(p)].mean()
    assert same(fit(5, [GradAccum(16, denominator=lambda f, y, pred: sure(pred).sum())], loss), fit(16, [], loss))

class Two(nn.Module):
    "Two inputs in one, two predictions"
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, C), nn.Linear(12, 2)
    def forward(self, x):
        x = torch.cat(x, 1)
        return self.a(x), self.b(x)

def two_losses(pred, y, z): return F.cross_entropy(pred[0], y) + F.mse_loss(pred[1], z)

def test_what_adds_up_is_not_refused_nor_warned_of():
    multi = [(x, (torch.arange(C) == y).float()) for x, y in samples()]
    sparse = lambda p, y: F.binary_cross_entropy_with_logits(p, y, pos_weight=W)
    nested = [((x, x+1), y, torch.randn(2)) for x, y in samples()]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for data, loss in ((None, lambda p, y: F.cross_entropy(p, y)), (None, FocalLossFlat(weight=W)), (multi, sparse), (multi, MSELossFlat())):
            assert same(fit(5, [GradAccum(16)], loss, data), fit(16, [], loss, data))
        dls = lambda bs: D.DataLoader(nested, batch_size=bs)
        nets = [Two(), Two()]
        nets[1].load_state_dict(nets[0].state_dict())
        a, b = (Learner(DataLoaders(dls(bs), dls(64)), net, loss_func=two_losses, opt_func=SGD, cbs=[Record(), *cbs], path=tempfile.gettempdir())
                for bs, net, cbs in ((5, nets[0], [GradAccum(16)]), (16, nets[1], [])))
        for learn in (a, b):
            learn.dls.n_inp = 1
            with learn.no_bar(), learn.no_logging(): learn.fit(1, .1)
        assert same(a, b)

class CPUMixedPrecision(MixedPrecision):
    "fastai's, with the device's name changed"
    def before_fit(self):
        dtype = torch.bfloat16 if self.amp_mode.value == 'bf16' else torch.float16
        self.autocast, self.scales = torch.autocast('cpu', dtype=dtype), []
        self.learn.scaler = torch.amp.GradScaler('cpu', init_scale=1024., enabled=dtype == torch.float16)

class Penalty(Callback):
    def after_loss(self):
        if self.training: self.learn.loss_grad = self.learn.loss_grad + .1*self.pred.pow(2).mean()

@pytest.mark.parametrize('cb', [lambda: CPUMixedPrecision('fp16'), lambda: CPUMixedPrecision('bf16'), Penalty, MixUp])
def test_half_precision_mixing_and_penalties_are_no_false_alarm(cb):
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='the loss is taken')
        for loss in (CrossEntropyLossFlat(weight=W), FocalLossFlat()): fit(5, [GradAccum(16), cb()], loss)
        if cb is not MixUp: fit(5, [GradAccum(16), cb()], lambda p, y: F.cross_entropy(p, y))

def test_cutmix_is_no_false_alarm():
    data = [(torch.randn(3, 8, 8), torch.tensor(i%C)) for i in range(32)]
    net = nn.Sequential(nn.Conv2d(3, C, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    fit(5, [GradAccum(16), CutMix()], CrossEntropyLossFlat(), data, net)

def test_what_cannot_be_checked_is_said_and_a_denominator_silences_it():
    noisy = lambda p, y: F.cross_entropy(F.dropout(p, .5), y)
    scalars = lambda p, y: p['a'] + p['b']
    class Dict(nn.Module): # losses as predictions, as torchvision's detectors give them
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(6, C)
        def forward(self, x): return dict(a=self.net(x).pow(2).mean(), b=self.net(x).mean())
    for loss, net in ((noisy, None), (scalars, Dict())):
        with pytest.warns(UserWarning, match='cannot be checked'): fit(4, [GradAccum(16)], loss, model=net)
        with warnings.catch_warnings():
            warnings.filterwarnings('error', message='the loss is taken')
            fit(4, [GradAccum(16, denominator=lambda f, y: len(y))], loss, model=net)

def test_the_check_draws_no_random_numbers():
    noisy = lambda p, y: F.cross_entropy(F.dropout(p, .5), y)
    drawn = []
    for check in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            fit(4, [GradAccum(16, check=check)], noisy)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)

def test_few_windows_are_kept():
    class Keeps(Callback):
        order = 90
        def before_fit(self): self.seen = []
        def before_step(self):
            if self.learn.grad_accum.keep: self.seen.append(self.learn.train_iter+1)
    data = samples(20*16)
    learn = fit(4, [GradAccum(16), Keeps()], lambda p, y: F.cross_entropy(p, y), data, epochs=2)
    assert learn.keeps.seen == [1, 2, 3, 4, 8, 16] and not fit(4, [GradAccum(16), Keeps()], data=data).keeps.seen

@pytest.mark.parametrize('at', [2, 3, 4, 8])
def test_a_loss_that_agrees_by_accident_is_refused_in_a_later_window(at):
    data = [(x, y if i >= 16*(at-1) else torch.tensor(1)) for i, (x, y) in enumerate(samples(16*10))] # one class before
    with pytest.raises(SettingsError, match='denominator='): fit(4, [GradAccum(16)], HIDDEN['weights'], data)
    own = GradAccum(16, denominator=lambda f, y: W[y].sum())
    assert same(fit(4, [own], HIDDEN['weights'], data), fit(16, [], HIDDEN['weights'], data))

def test_a_sum_in_a_function_of_ones_own_says_so():
    loss = lambda p, y: F.cross_entropy(p, y, reduction='sum')
    with pytest.raises(SettingsError, match="set loss.reduction = 'sum'"): fit(5, [GradAccum(16)], loss, lr=.01)
    loss.reduction = 'sum'
    outer = partial(loss)
    outer.reduction = 'sum'
    for f in (loss, outer, partial(loss)): assert same(fit(5, [GradAccum(16)], f, lr=.01), fit(16, [], f, lr=.01))

# ---- other callbacks

class Drop(Callback):
    def before_batch(self):
        if self.training: self.learn.xb, self.learn.yb = (self.x[self.y != 0],), (self.y[self.y != 0],)

class Ignore(Callback):
    def before_batch(self):
        if self.training: self.learn.yb = (torch.where(self.y == 0, -100, self.y),)

class Triple(Callback):
    order = -8
    def before_batch(self):
        if self.training: self.learn.xb = (self.x*3,)

class Double(Callback):
    def before_batch(self):
        if self.training: self.learn.xb, self.learn.yb = (torch.cat([self.x, self.x*.5]),), (torch.cat([self.y, self.y]),)

@pytest.mark.parametrize('cb', [Drop, Ignore, Triple, Double])
@pytest.mark.parametrize('loss', ['mean', 'weighted', 'sum'])
def test_shares_are_those_of_the_batch_that_callbacks_leave(cb, loss):
    assert same(fit(5, [GradAccum(16), cb(), GradientClip(.5)], LOSSES[loss]()), fit(16, [cb(), GradientClip(.5)], LOSSES[loss]()))

def test_a_second_accumulator_is_refused():
    for other in (GradientAccumulation(16), GradAccum(8)):
        with pytest.raises(SettingsError, match='two callbacks accumulate'): fit(4, [GradAccum(16), other])

class Raise(Callback):
    "Raises in one event, the `at`-th time"
    def __init__(self, event_name, exception, at): self.event_name, self.exception, self.at, self.n = event_name, exception, at, 0
    def __call__(self, event_name):
        super().__call__(event_name)
        if event_name == self.event_name and getattr(self.learn, 'training', False):
            self.n += 1
            if self.n == self.at: raise self.exception()

def test_a_cancelled_backward_leaves_its_micro_batch_out():
    for at in (1, 2, 4): # of four micro-batches
        learn = fit(4, [GradAccum(16), Raise('before_backward', CancelBackwardException, at)], data=samples(16), lr=0.)
        x, y = (torch.stack(o) for o in zip(*samples(16)))
        left = [i for i in range(16) if i//4 != at-1]
        loss = F.cross_entropy(learn.model(x[left]), y[left], reduction='sum')/16
        g = torch.cat([o.flatten() for o in torch.autograd.grad(loss, list(learn.model.parameters()))])
        assert torch.allclose(learn.record.grads[0], g, atol=1e-6)

@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'after_loss', 'before_backward', 'after_backward', 'before_step'])
def test_cancel_exceptions_act_on_the_window(event):
    at = 2 if event in ('after_backward', 'before_step') else 6 # within the second window
    assert len(fit(4, [GradAccum(16), Raise(event, CancelBatchException, at)], data=samples(64)).record.grads) == 3
    assert len(fit(4, [GradAccum(16), Raise(event, CancelEpochException, at)], data=samples(64)).record.grads) == 1
    assert len(fit(4, [GradAccum(16), Raise(event, CancelFitException, at)], data=samples(64)).record.grads) == 1
    for exception in (CancelTrainException, CancelEpochException): # the next epoch is a whole one
        assert len(fit(4, [GradAccum(16), Raise(event, exception, at)], data=samples(64), epochs=2).record.grads) == 5
    if event == 'before_step': assert len(fit(4, [GradAccum(16), Raise(event, CancelStepException, at)], data=samples(64)).record.grads) == 3

def test_more_than_one_process_is_refused(monkeypatch):
    from types import SimpleNamespace
    ranks = 2
    group = SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True, get_world_size=lambda: ranks)
    class DistributedTrainer(Callback): "stands for fastai's, which distrib_ctx adds"
    with pytest.raises(SettingsError, match='process group'): fit(4, [DistributedTrainer(), GradAccum(16)])
    monkeypatch.setattr('vision_ft.accum.distributed', group)
    with pytest.raises(SettingsError, match='one process.*of 2'): fit(4, [GradAccum(16)])
    ranks = 1
    fit(4, [GradAccum(16)])

class SAM(Callback):
    "Two gradients a step, the second by `again`"
    def __init__(self, again, order=5): self.again, self.order = again, order
    def before_step(self):
        params = list(self.model.parameters())
        moves = [p.grad*.5/torch.stack([q.grad.norm() for q in params]).norm() for p in params]
        with torch.no_grad():
            for p, e in zip(params, moves): p.add_(e)
        self.opt.zero_grad()
        self.again(self.learn)
        with torch.no_grad():
            for p, e in zip(params, moves): p.sub_(e)

def one_batch(learn): learn.loss_func(learn.model(*learn.xb), *learn.yb).backward()

@pytest.mark.parametrize('train_metrics', [False, True])
def test_a_second_gradient_of_the_window_is_replayed_or_refused(train_metrics):
    with pytest.raises(SettingsError, match='replay'): fit(4, [GradAccum(16), SAM(one_batch)], train_metrics=train_metrics)
    sam = fit(4, [GradAccum(16), SAM(lambda learn: learn.grad_accum.replay()), Ignore()], LOSSES['weighted'](), train_metrics=train_metrics)
    full = fit(16, [SAM(one_batch), Ignore()], LOSSES['weighted'](), train_metrics=train_metrics)
    assert same(sam, full) and sam.record.logged[0][0] == pytest.approx(full.record.logged[0][0], rel=1e-5)
    assert not sam.model._forward_pre_hooks
    sam.model(torch.randn(2, 6)).sum().backward() # outside a step nothing is refused

def test_nothing_of_a_fit_stays_in_the_callback():
    class Stop(Callback):
        order = 95
        def after_step(self): raise KeyboardInterrupt
    learn = fit(4, [GradAccum(16)])
    cb = learn.grad_accum
    assert not cb.window and not cb.kept and not cb.others and cb.hook is None
    with pytest.raises(SettingsError, match='before_step'): cb.replay()
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(KeyboardInterrupt): learn.fit(1, .1, cbs=Stop())
        learn.fit(1, .1)
    assert not learn.model._forward_pre_hooks

@pytest.mark.parametrize('event', ['before_step', 'after_step'])
@pytest.mark.parametrize('exception', [CancelFitException, CancelTrainException, CancelEpochException, KeyboardInterrupt])
def test_after_an_interrupted_step_the_model_is_as_any_other(event, exception):
    learn = fit(4, [GradAccum(16)])
    cb, caught = learn.grad_accum, None
    with learn.no_bar(), learn.no_logging():
        try: learn.fit(1, .1, cbs=Raise(event, exception, 2))
        except KeyboardInterrupt as e: caught = e # as a notebook keeps the error, with all its frames
    assert (caught is None) == (exception is not KeyboardInterrupt)
    if caught is None: assert not learn.model._forward_pre_hooks and not cb.window and not cb.losses
    copy = pickle.loads(pickle.dumps(learn.model))
    for model in (learn.model, copy): model(torch.randn(2, 6)).sum().backward()
    assert not learn.model._forward_pre_hooks and not cb.window and not cb.losses and cb.hook is None

def test_a_fit_of_another_learner_is_not_refused_after_an_interrupted_step():
    class Stop(Callback):
        def after_step(self): raise KeyboardInterrupt
    model = nn.Linear(6, C)
    with pytest.raises(KeyboardInterrupt): fit(4, [GradAccum(16), Stop()], model=model)
    assert len(fit(4, [SAM(one_batch)], model=model).record.grads) == 10

def test_replay_in_half_precision_carries_the_loss_scale():
    half = fit(4, [GradAccum(16), CPUMixedPrecision('fp16'), SAM(lambda learn: learn.grad_accum.replay())])
    assert same(half, fit(4, [GradAccum(16), SAM(lambda learn: learn.grad_accum.replay())]), 1e-2)

# ---- batches, windows, loaders

def detection(n=24):
    g = torch.Generator().manual_seed(0)
    return [(torch.rand(3, 32+4*(i%3), 40, generator=g), dict(boxes=torch.rand(3, 4, generator=g), labels=torch.ones(3))) for i in range(n)]

def as_lists(items): return tuple(map(list, zip(*items)))

def test_lists_are_cut_by_samples_or_refused():
    dl = lambda bs: D.DataLoader(detection(), batch_size=bs, collate_fn=as_lists)
    for bs in (3, 4, 5, 8, 24):
        seen = [[tuple(o.shape) for b in w.window for o in b[0]] for w in [Windows(dl(bs), 8, ListBatch)] for _ in w]
        assert [len(o) for o in seen] == [8, 8, 8] and sum(seen, []) == [tuple(x.shape) for x, _ in detection()]
        with pytest.raises(SettingsError, match='ListBatch'): next(iter(Windows(dl(bs), 8))) # also with three boxes for each of its images

@pytest.mark.parametrize('b', [(torch.rand(8, 3), ['a']*8, torch.arange(8)), (torch.rand(8, 3), torch.tensor(1.)), (torch.rand(8, 3), None),
                               (torch.rand(8, 3), torch.arange(7))])
def test_batches_of_unknown_kind_are_refused(b):
    with pytest.raises(SettingsError, match='first dimension'): TensorBatch.length(b)

def test_lists_beside_a_stacked_tensor_are_joined_part_by_part():
    images, targets = torch.rand(9, 3, 8, 8), [dict(boxes=torch.rand(1+i%3, 4)) for i in range(9)]
    whole = ListBatch.join([ListBatch.cut((images, targets), 0, 4), ListBatch.cut((images, targets), 4, 9)])
    assert torch.equal(whole[0], images) and whole[1] == targets
    dl = D.DataLoader(list(zip(images, targets)), batch_size=4, collate_fn=lambda items: (torch.stack([x for x, _ in items]), [t for _, t in items]))
    seen = [[(b[0].shape, len(b[1])) for b in w.window] for w in [Windows(dl, 9, ListBatch)] for _ in w] # 4+4+1 is balanced
    assert seen == [[(torch.Size([3, 3, 8, 8]), 3)]*3]

def test_a_detector_of_lists_trains_exactly():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
        def forward(self, images): return [self.conv(o).mean((1, 2)) for o in images]
    def loss(pred, targets): return sum(((p-t['boxes'])**2).mean() for p, t in zip(pred, targets))/len(pred)
    torch.manual_seed(0)
    a, b = Net(), Net()
    b.load_state_dict(a.state_dict())
    runs = []
    for net, bs, cbs in ((a, 5, [GradAccum(8, batch=ListBatch)]), (b, 8, [])):
        dl = D.DataLoader(detection(), batch_size=bs, collate_fn=as_lists)
        runs.append(fit(bs, cbs, loss, model=net, dl=dl))
    assert same(*runs)

def sizes(n, bs, effective):
    w = Windows(DataLoader(list(zip(torch.arange(n), torch.arange(n))), bs=bs, shuffle=False, drop_last=False), effective)
    return [[len(b[0]) for b in w.window] for _ in w]

@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 60), bs=st.integers(3, 20), effective=st.integers(2, 40))
def test_no_micro_batch_of_one_where_it_can_be_avoided(n, bs, effective):
    for window in sizes(n, bs, effective):
        assert max(window) <= bs and (min(window) > 1 or sum(window) == 1)

def ragged(collate, effective, net, loss=None, n=21):
    "Steps of a fit over batches of 4 that can't be joined"
    data = [(torch.arange(1, 3+i%5), torch.tensor(i%C)) for i in range(n)]
    learn = fit(4, [GradAccum(effective)], model=net, dl=D.DataLoader(data, batch_size=4, collate_fn=collate), loss=loss)
    return len(learn.record.grads)

def padded(items): return nn.utils.rnn.pad_sequence([x for x, _ in items], batch_first=True), torch.stack([y for _, y in items])

def multi_scale(items): # the size depends on the batch
    size = 8+int(items[0][0].sum())%3
    return torch.ones(len(items), 3, size, size), torch.stack([y for _, y in items])

class Bag(nn.Module):
    "A mean of embeddings"
    def __init__(self):
        super().__init__()
        self.emb, self.out = nn.Embedding(9, 8, padding_idx=0), nn.Linear(8, C)
    def forward(self, x): return self.out(self.emb(x).mean(1))

def test_a_lone_sample_of_batches_that_cannot_be_joined_trains():
    conv = lambda: nn.Sequential(nn.Conv2d(3, C, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    norm = lambda: nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for effective in (9, 16, 17): # windows of 4+4+1 and others
        steps = -(-21//effective)
        assert ragged(padded, effective, Bag()) == ragged(multi_scale, effective, conv()) == steps
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='.*batch-norm layers')
            assert ragged(multi_scale, effective, norm()) == steps

def test_one_sample_under_batch_norm_is_refused_before_the_first_step():
    net = lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, C))
    fit(5, [GradAccum(16)], data=samples(32), model=net()) # 32 images: 5+5+5+1 becomes 4+4+4+4
    for n, bs, effective in ((17, 5, 16), (20, 5, 19), (17, 1, 8), (9, 2, 3)):
        with pytest.raises(SettingsError, match='leave one image alone'): fit(bs, [GradAccum(effective)], data=samples(n), model=net())
    model = net()
    with pytest.raises(SettingsError): fit(5, [GradAccum(16)], data=samples(17), model=model)
    assert not any(m._forward_pre_hooks for m in model.modules())
    fit(5, [GradAccum(15)], data=samples(17), model=model) # as the error says

def test_one_image_of_many_pixels_is_enough_for_batch_norm():
    data = [(torch.randn(3, 8, 8), torch.tensor(i%C)) for i in range(17)]
    net = nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert len(fit(5, [GradAccum(16)], data=data, model=net).record.grads) == 2

def test_loaders_without_a_length_are_refused_in_words():
    class Stream(D.IterableDataset):
        def __iter__(self): yield from samples()
    class Groups:
        "A batch sampler that draws 30 batches of 6"
        def __iter__(self): yield from ([(7*i+j)%37 for j in range(6)] for i in range(30))
        def __len__(self): return 30
    for dl in (D.DataLoader(Stream(), batch_size=4), DataLoader(Stream(), bs=4), D.DataLoader(samples(), batch_sampler=Groups())):
        with pytest.raises(SettingsError, match='number of samples of an epoch is unknown'): fit(4, [GradAccum(12)], dl=dl)
    sized = Groups()
    sized.batch_size = 6 # as the error says
    dl = D.DataLoader(samples(), batch_sampler=sized)
    assert n_samples(dl) == 180 and len(Windows(dl, 12)) == len(fit(6, [GradAccum(12)], dl=dl).record.grads) == 15

def test_loaders_of_whole_batches_are_refused_in_words():
    whole = [tuple(torch.stack(o) for o in zip(*samples()[i:i+5])) for i in range(0, 35, 5)]
    for dl in (D.DataLoader(whole, batch_size=None), DataLoader(whole, bs=None)):
        with pytest.raises(SettingsError, match='unknown.*\n.*single samples'): fit(5, [GradAccum(10)], dl=dl)
    assert n_samples(D.DataLoader([s for b in whole for s in zip(*b)], batch_size=5)) == 35 # as the error says
    dl = D.DataLoader(whole, batch_size=None)
    dl.n = sum(len(y) for _, y in whole) # the other way
    assert len(Windows(dl, 10)) == len(fit(5, [GradAccum(10)], dl=dl).record.grads) == 4

class Short:
    "A batch sampler whose last batches are smaller than it says"
    batch_size = 8
    def __iter__(self): yield from (list(range(i, min(i+8, 37))) for i in range(0, 37, 8))
    def __len__(self): return 5

def test_an_epoch_of_other_length_than_announced_is_warned_of():
    short = D.DataLoader(samples(), batch_sampler=Short())
    twice = D.DataLoader(samples(), batch_size=8, collate_fn=lambda items: D.default_collate(items+items))
    for dl, effective, than in ((short, 19, 'fewer steps than the 3'), (twice, 16, 'more steps than the 3')):
        with pytest.warns(UserWarning, match=than): fit(8, [GradAccum(effective)], dl=dl)
    short.n, twice.n = 37, 74 # as the warning says
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(fit(8, [GradAccum(19)], dl=short).record.grads) == 2
        fit(8, [GradAccum(16)], dl=twice)
        for exception in (CancelTrainException, CancelEpochException, CancelFitException): # a short epoch that is meant
            fit(4, [GradAccum(16), Raise('after_batch', exception, 1)])

# ---- what a fit leaves behind

def test_history_counts_steps_and_not_skipped_ones():
    history = History()
    fit(4, [GradAccum(16), history, Raise('before_step', CancelStepException, 2)], data=samples(64))
    assert history.table.steps.tolist() == [3] and list(history.table.columns[:4]) == ['epoch', 'frozen', 'train_loss', 'valid_loss']

def test_step_bar_counts_optimizer_steps():
    bar = StepBar('x')
    fit(4, [GradAccum(16), bar], data=samples(64))
    assert (bar.tqdm.n, bar.tqdm.total) == (4, 4) and 'valid_loss=' in bar.tqdm.postfix

class Fail(Callback):
    "Raises inside autocast, in the second batch"
    order = 11
    def __init__(self, error): self.error = error
    def after_pred(self):
        if self.learn.train_iter == 1: raise self.error

def half_precision_loss(*cbs):
    torch.manual_seed(0)
    learn = fit(8, [CPUMixedPrecision('bf16'), *cbs], data=samples(64), lr=1.)
    return float(learn.recorder.values[-1][-1])

@pytest.mark.parametrize('error', [torch.OutOfMemoryError('CUDA out of memory (pretended)'), KeyboardInterrupt()])
def test_a_fit_after_an_error_inside_autocast_is_as_without(error):
    alone = half_precision_loss()
    with closed_autocast(): # the fault, and that this test would see it
        with pytest.raises(type(error)): half_precision_loss(Fail(error))
        assert torch.is_autocast_enabled('cpu') and half_precision_loss() != alone
    assert not torch.is_autocast_enabled('cpu')
    with pytest.raises(type(error)), closed_autocast(): half_precision_loss(Fail(error))
    assert not torch.is_autocast_enabled('cpu') and half_precision_loss() == alone

def test_closed_autocast_keeps_an_outer_context():
    with torch.autocast('cpu', dtype=torch.bfloat16):
        with pytest.raises(ZeroDivisionError), closed_autocast():
            torch.autocast('cpu', dtype=torch.float16).__enter__()
            1/0
        assert torch.is_autocast_enabled('cpu') and torch.get_autocast_dtype('cpu') == torch.bfloat16
    assert not torch.is_autocast_enabled('cpu')

def test_halving_closes_autocast_and_ends_in_one_sentence():
    alone, tried = half_precision_loss(), []
    def job(micro_bs):
        tried.append(micro_bs)
        return half_precision_loss(*([Fail(torch.OutOfMemoryError('out of memory'))] if micro_bs > 4 else []))
    with pytest.warns(UserWarning, match='micro_bs 4'): assert halve_on_oom(job, 16) == alone
    assert tried == [16, 8, 4]
    def never(micro_bs): raise torch.OutOfMemoryError('CUDA out of memory')
    with pytest.warns(UserWarning), pytest.raises(SettingsError, match='one image at a time.\n  Fix: '): halve_on_oom(never, 3)
    def broken(micro_bs): raise RuntimeError('shapes differ')
    with pytest.raises(RuntimeError, match='shapes'): halve_on_oom(broken, 4)
