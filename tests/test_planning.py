"Simulated steps against real ones, ways to ask for a prediction, and plans that keep their word."
import math
from dataclasses import replace
import pytest, torch, torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import box_iou, sigmoid_focal_loss
from vision_ft import planning
from vision_ft.core import SettingsError
from vision_ft.planning import (BatchNormError, BudgetError, StepSettings, plan_micro_bs, predict_memory,
                                simulate_step)
from test_memory import cuda, nvml # a pretended card

M = 2**20

class Held(TorchDispatchMode):
    "The most that tensors made in a block hold, counted after each operation"
    def __init__(self, own): super().__init__(); self.own, self.refs, self.peak = {t.untyped_storage()._cdata for t in own}, {}, 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for s in [t.untyped_storage() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]:
            if s._cdata not in self.own: self.refs.setdefault(s._cdata, (StorageWeakRef(s), s.nbytes()))
        self.peak = max(self.peak, sum(n for ref, n in self.refs.values() if not ref.expired()))
        return out

def held_by(step, model, batch):
    "MiB of the tensors of a real step besides weights, gradients and the batch"
    for p in model.parameters(): p.grad = torch.zeros_like(p)
    own = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters()), *tree_leaves(batch)]
    with Held([t for t in own if isinstance(t, torch.Tensor)]) as h: sum(tree_leaves(step(model, batch))).backward()
    return h.peak/M

def highest(events):
    "MiB of the tensors that the events of a simulated step say"
    size, now, peak = {}, 0, 0
    for key, n in events:
        now += n or -size.pop(key, 0)
        size[key] = n or 0
        peak = max(peak, now)
    return peak/M

def block(n_in, n_out, norm=nn.BatchNorm2d): return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1), norm(n_out), nn.ReLU())

class UNet(nn.Module):
    "Three levels with skip connections"
    def __init__(self, n=16):
        super().__init__()
        self.down, self.up = nn.ModuleList([block(3, n), block(n, 2*n), block(2*n, 4*n)]), nn.ModuleList([block(4*n, 2*n), block(2*n, n)])
        self.wider, self.head = nn.ModuleList([nn.ConvTranspose2d(4*n, 2*n, 2, 2), nn.ConvTranspose2d(2*n, n, 2, 2)]), nn.Conv2d(n, 3, 1)
    def forward(self, x):
        kept = []
        for i, f in enumerate(self.down):
            x = f(F.max_pool2d(x, 2) if i else x)
            kept.append(x)
        for wider, f in zip(self.wider, self.up): x = f(torch.cat([wider(x), kept[-2]], 1)); kept.pop()
        return self.head(x)

def segment(model, batch):
    x, y = batch
    logits = model(x)
    probs, hot = logits.softmax(1), (y[:, None] == torch.arange(3, device=y.device)[:, None, None]).float()
    return F.cross_entropy(logits, y), 1-2*(probs*hot).sum()/(probs+hot).sum()

class Detector(nn.Module):
    "Scores and offsets for an anchor in each cell of an 8-pixel grid"
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*[nn.Sequential(block(a, b), nn.MaxPool2d(2)) for a, b in ((3, 16), (16, 32), (32, 64))])
        self.scores, self.offsets = nn.Conv2d(64, 3, 1), nn.Conv2d(64, 4, 1)
        c = torch.arange(4., 96, 8)
        y, x = torch.meshgrid(c, c, indexing='ij')
        self.anchors = [torch.stack([x-12, y-12, x+12, y+12], -1).view(-1, 4)] # neither parameter nor buffer, as in torchvision
    def forward(self, images):
        z = self.body(torch.stack(images))
        return self.scores(z).flatten(2).mT, self.offsets(z).flatten(2).mT

def detect(model, batch):
    images, targets = batch
    losses = dict(classes=0, boxes=0)
    for s, o, t in zip(*model(images), targets):
        anchors = model.anchors[0].to(s.device)
        iou, best = box_iou(t['boxes'], anchors).max(0)
        near = (iou > .5)[:, None]
        hot = (t['labels'][best][:, None] == torch.arange(3, device=s.device)) & near
        losses['classes'] += sigmoid_focal_loss(s, hot.float(), reduction='sum')
        losses['boxes'] += (F.smooth_l1_loss(o, t['boxes'][best]-anchors, reduction='none')*near).sum()
    return losses

def segmentation(): return segment, UNet(), (torch.randn(8, 3, 96, 96), torch.randint(3, (8, 96, 96)))

def detection():
    target = dict(boxes=torch.tensor([[0., 0, 24, 24], [40, 40, 70, 70]]), labels=torch.tensor([0, 2]), name='a scene')
    return detect, Detector(), ([torch.randn(3, 96, 96) for _ in range(6)], [target]*6)

@pytest.mark.parametrize('case', [segmentation, detection])
def test_a_step_of_another_wing_holds_what_was_simulated(case):
    step, model, batch = case()
    p = simulate_step(step, model, batch, device='cpu')
    held, inputs = held_by(step, model, batch), sum(t.nbytes for t in tree_leaves(batch) if isinstance(t, torch.Tensor))/M
    assert highest(p.events) == pytest.approx(held, rel=.002)
    assert p.parts[['activations', 'working']].sum() == pytest.approx(held+inputs, rel=.05) # blocks that the allocator doesn't split
    assert p.parts['weights'] == pytest.approx(sum(t.nbytes for t in [*model.parameters(), *model.buffers()])/M)
    assert p.peak_mib == pytest.approx(p.parts.sum())
    half = simulate_step(step, model, batch, precision='fp16', device='cuda')
    assert half.parts['activations'] < p.parts['activations'] and half.parts['weight copies'] > 0

def test_a_simulated_model_stays_as_it_is():
    step, model, batch = segmentation()
    model.down[0].requires_grad_(False)
    model.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    p = simulate_step(step, model, batch, device='cuda')
    assert all(torch.equal(v, before[k]) and v.device.type == 'cpu' for k, v in model.state_dict().items())
    assert not model.training and all(q.grad is None for q in model.parameters())
    trained = sum(q.nbytes for q in model.parameters() if q.requires_grad)/M
    assert p.parts['gradients'] == trained and p.parts['optimizer'] == 2*trained < 2*p.parts['weights']

@pytest.mark.parametrize('loss, words', [(lambda m, b: m(b)[b[:, 0] > 0].sum(), 'values of tensors'), (lambda m, b: m(b).sum().item(), 'values of tensors'),
                                         (lambda m, b: m(b), 'no loss'), (lambda m, b: m(b).detach().sum(), 'no loss'), (lambda m, b: None, 'no loss')])
def test_a_step_that_cant_be_simulated_is_refused(loss, words):
    with pytest.raises(SettingsError, match=words): simulate_step(loss, nn.Conv2d(3, 3, 1), torch.randn(2, 3, 8, 8), device='cpu')

@pytest.mark.parametrize('arch, size', [('samvit_base_patch16', 256), ('hiera_tiny_224', 224)])
def test_attention_of_three_and_five_dimensions(arch, size):
    "A GPU takes the textbook form for it, and so does a CPU"
    p, q = (predict_memory(arch, size, 1, precision='fp32', device=o) for o in ('cuda', 'cpu'))
    assert p.parts['activations'] == pytest.approx(q.parts['activations'], rel=.03)
    plan = plan_micro_bs(arch, size, 8)
    assert plan.micro_bs*plan.accum >= 8 and plan.peak_mib < plan.budget_mib

def test_what_is_free_on_a_card(cuda, monkeypatch):
    import os
    nvml(monkeypatch, (os.getpid(), 3072*M))
    assert planning._free_mib('cuda') == (11+3-1)*1024 # all that this process holds but its tensors: the prediction has the rest
    cuda.empty_cache.assert_called()
    nvml(monkeypatch)
    assert planning._free_mib('cuda:0') == (11+2-1)*1024 # where the process isn't seen, the allocator's cache alone
    cuda.memory_allocated.return_value = 2048*M
    assert planning._free_mib('cuda') == 11*1024

def test_a_plan_is_sure_when_a_larger_process_would_fit_too():
    known = {o: plan_micro_bs('tiny_vit', 32, 8, o, overhead_mib=planning.OVERHEAD_MIB) for o in (1600, 2600)}
    assumed = {o: plan_micro_bs('tiny_vit', 32, 8, o) for o in (1600, 2600)}
    assert [known[o].sure for o in known] == [True, True] and [assumed[o].sure for o in assumed] == [False, True]
    assert known[1600].peak_mib == assumed[1600].peak_mib and 'overhead_mib=' in repr(assumed[1600]) and 'overhead_mib=' not in repr(known[1600])

@pytest.mark.parametrize('spare, checkpointing, sure', [(14, False, False), (16, False, True), (16, True, True), (14, True, False)])
def test_a_plan_for_a_small_training_keeps_15_mib(spare, checkpointing, sure):
    "A process holds 5 to 13 MiB besides its tensors: more than a tenth of a training of 40 MiB"
    kw = dict(precision='fp32', device='cpu', checkpointing=checkpointing)
    need = predict_memory('tiny_vit', 32, 8, **kw).peak_mib
    assert .2*(need+16) < 14
    assert plan_micro_bs('tiny_vit', 32, 8, need+spare, **kw).sure == sure

def test_a_plan_for_a_large_training_keeps_a_share():
    plans = [plan_micro_bs('tiny_vit', 32, 8, 4096, overhead_mib=0, checkpointing=o) for o in (False, True)]
    assert [o.margin_mib for o in plans] == [pytest.approx(409.6), pytest.approx(819.2)]

@pytest.mark.parametrize('budget', [16, 22, 30, 45, 70])
def test_the_largest_micro_batch_that_fits(budget):
    kw, images = dict(precision='fp32', device='cpu'), lambda n: (40-n)*3*32*32*4/M
    need = {math.ceil(40/k): 0 for k in range(1, 41)}
    need = {n: float(predict_memory('tiny_vit', 32, n, **kw))+images(n) for n in need}
    p = plan_micro_bs('tiny_vit', 32, 40, budget, **kw)
    assert p.micro_bs == max(n for n, mib in need.items() if mib <= budget) and p.accum == math.ceil(40/p.micro_bs)
    assert p.parts['window'] == images(p.micro_bs) and p.peak_mib == pytest.approx(need[p.micro_bs])

def test_what_doesnt_fit_is_told_from_other_errors():
    with pytest.raises(BudgetError, match='for 1 image at a time, the budget is 5'): plan_micro_bs('tiny_vit', 32, 8, 5, device='cpu')
    with pytest.raises(BudgetError, match='for 2 images at a time'): plan_micro_bs('resnet18', 32, 8, 5, device='cpu') # not for 1: batch norm
    with pytest.raises(BatchNormError): plan_micro_bs('resnet18', 32, 1, device='cpu')
    for wrong in (dict(budget='much'), dict(precision='fp8'), dict(no_such_argument=1), dict(settings='fp32')):
        with pytest.raises(SettingsError) as e: plan_micro_bs('tiny_vit', 32, 8, **wrong)
        assert not isinstance(e.value, BudgetError)

def test_a_probe_is_refused_when_images_dont_show(monkeypatch):
    monkeypatch.setattr(planning, 'measure_training', lambda *what: 100.)
    with pytest.raises(SettingsError, match='larger micro_bs'): predict_memory('tiny_vit', 32, 16, precision='fp32', device='cpu', probe=True)
    monkeypatch.setattr(planning, 'measure_training', lambda arch, size, n, *rest: 100.+2*n)
    p = plan_micro_bs('tiny_vit', 32, 64, 150, device='cpu', precision='fp32', probe=True)
    assert (p.micro_bs, p.accum) == (22, 3) and p.peak_mib == pytest.approx(144+42*3*32*32*4/M)

@pytest.mark.parametrize('change, same', [(dict(size='64'), True), (dict(size='64x64'), True), (dict(micro_bs=4.), True), (dict(n_out=10.), True),
                                          (dict(device='cuda:1'), True), (dict(in_chans=1), False), (dict(settings=StepSettings()), True),
                                          (dict(settings=StepSettings(precision='fp32')), False),
                                          (dict(settings=StepSettings(precision='fp32'), precision='fp16'), True)])
def test_ways_to_say_it(change, same):
    p, q = (predict_memory(**{'arch': 'tiny_convnext', 'size': 64, 'micro_bs': 4, **o}).peak_mib for o in ({}, change))
    assert (p == q) == same

def test_keywords_and_settings_are_the_same():
    s = StepSettings('bf16', optimizer='sgd', trainable='norm', n_out=3, model_args=dict(in_chans=1))
    words = dict(precision='bf16', optimizer='sgd', trainable='norm', n_out=3, in_chans=1)
    p, q = predict_memory('tiny_convnext', 64, 4, s), predict_memory('tiny_convnext', 64, 4, **words)
    assert p.parts.equals(q.parts) and p.title == q.title
    assert predict_memory('tiny_convnext', 64, 4, replace(s, model_args={}), in_chans=1).parts.equals(p.parts)

def test_adamw_copies_gradients_on_a_gpu_only():
    peak = lambda device, optimizer: float(predict_memory('convnext_tiny', 32, 2, precision='fp32', optimizer=optimizer, device=device))
    assert peak('cpu', 'adam') == peak('cpu', 'adamw') and peak('cuda', 'adamw') > peak('cuda', 'adam')+20
