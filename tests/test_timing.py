"The time of a step: which steps are counted, and steps of the right size"
import time
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from torch import nn
from vision_ft.classify.timing import StepClock, time_steps

class Clockwork(Callback):
    "Time goes by as it is told: 1 s a step and 10 ms an image in training, 2 ms in validation, and 5 s for the first step of all"
    order, run_valid = 99, True
    def __init__(self): self.now, self.cold, self.start = 0., True, 0.
    def before_train(self): self.first = True
    def after_batch(self):
        n = len(self.x)
        self.now += (1+.01*n) if self.training else .002*n
        if self.training and self.first: self.now += self.start+5*self.cold
        if self.training: self.first = self.cold = False

@pytest.fixture
def made(monkeypatch):
    clockwork = Clockwork()
    monkeypatch.setattr(time, 'perf_counter', lambda: clockwork.now)
    x, y = torch.randn(3200, 4), torch.randint(2, (3200,))
    def loaders(n):
        train, valid = (list(zip(x[:k], y)) for k in (50*n, 200))
        return DataLoaders.from_dsets(train, valid, bs=n, num_workers=0)
    return Learner(loaders(2), nn.Linear(4, 2), loss_func=CrossEntropyLossFlat(), cbs=clockwork), loaders, clockwork

@pytest.mark.parametrize('seconds,n_timed', [(100, 64), (8.5, 8), (.1, 2)])
def test_a_step_is_predicted(made, seconds, n_timed):
    "Also where the time is too short for a whole one: by the line through two sizes"
    learn, loaders, _ = made
    step, clock = time_steps(learn, loaders, 64, seconds)
    assert clock.n_step == n_timed
    if n_timed > 2: assert step == pytest.approx(1.64)
    assert clock.per_image('valid') == pytest.approx(.002) and clock.extra('train') == pytest.approx(0)

def test_the_start_of_an_epoch_is_no_part_of_a_step(made):
    learn, loaders, clockwork = made
    clockwork.start = 3.
    step, clock = time_steps(learn, loaders, 64, 100)
    assert step == pytest.approx(1.64) and clock.extra('train') == pytest.approx(3)

def test_enough_is_enough(made):
    learn, loaders, _ = made
    learn.dls, clock = loaders(64), StepClock(64, seconds=10, least=4)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, cbs=clock)
    assert len(clock.times['train']) == 7 and clock.images['train'] == [64]*7 # 1.64 s each

def test_a_last_step_of_one_image_counts_as_one(made):
    "It made predictions 1.8 times too long where an epoch has few steps"
    learn, loaders, _ = made
    x, y = torch.randn(49, 4), torch.randint(2, (49,))
    learn.dls, clock = DataLoaders.from_dsets(list(zip(x, y)), list(zip(x, y)), bs=16, num_workers=0, drop_last=False), StepClock(16, seconds=100)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, cbs=clock)
    assert clock.images['train'] == [16, 16, 16, 1] and clock.per_image('train') == pytest.approx((2*1.16+1.01)/33)
