"The paths for devices that this machine may not have, and the promises of reporting and nesting."
import gc, math, os, sys
from types import SimpleNamespace as NS
from unittest.mock import MagicMock
import pandas as pd, pytest, torch
from vision_ft import memory
from vision_ft.classify.train import _out_of_memory, _planned
from vision_ft.core import DataError, SettingsError
from vision_ft.memory import free_memory, memory_report, plot_memory, track_memory
from vision_ft.planning import plan_micro_bs, predict_memory

M = 2**20

@pytest.fixture
def cuda(monkeypatch):
    "A pretended card of 16 GiB: 1 GiB allocated, 2 reserved, 3 in this process, 5 used in all"
    c = MagicMock(name='torch.cuda')
    c.is_available.return_value = c.is_initialized.return_value = True
    c.memory_allocated.return_value, c.memory_reserved.return_value, c.max_memory_allocated.return_value = 1024*M, 2048*M, 1536*M
    c.mem_get_info.return_value = (11*1024*M, 16*1024*M)
    c.get_device_properties.return_value = NS(uuid='1b2c')
    c.current_device.return_value = 0
    monkeypatch.setattr(torch, 'cuda', c)
    return c

def nvml(monkeypatch, *processes):
    lib = MagicMock(name='pynvml')
    lib.nvmlDeviceGetComputeRunningProcesses.return_value = [NS(pid=p, usedGpuMemory=m) for p, m in processes]
    monkeypatch.setitem(sys.modules, 'pynvml', lib)
    return lib

def changed(mock): return [str(c) for c in mock.mock_calls if any(w in str(c) for w in ('empty', 'reset', 'synchronize', 'collect'))]

def test_cuda_process_that_nvml_sees(cuda, monkeypatch):
    lib = nvml(monkeypatch, (1, 9000*M), (os.getpid(), 3072*M))
    r = memory_report('cuda')
    assert (r.allocated_mib, r.reserved_mib, r.process_mib, r.peak_mib) == (1024, 2048, 3072, 1536) and r.how.startswith('process')
    lib.nvmlDeviceGetHandleByUUID.assert_called_with('GPU-1b2c') # CUDA_VISIBLE_DEVICES renumbers cards, not uuids
    assert not changed(cuda)

@pytest.mark.parametrize('processes', [[], [(1, 9000*M)], [(os.getpid(), 10*M)], [(os.getpid(), None)]])
def test_cuda_process_invisible_in_a_container(cuda, monkeypatch, processes):
    nvml(monkeypatch, *processes)
    r = memory_report('cuda')
    assert r.process_mib == 5*1024 and r.how.startswith('device')

def test_cuda_without_nvml(cuda, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pynvml', None)
    assert memory_report('cuda:0').how.startswith('device')

def test_cuda_untouched_stays_untouched(cuda):
    cuda.is_initialized.return_value = False
    assert memory_report('cuda').process_mib == 0
    cuda.mem_get_info.assert_not_called() # would create a context of hundreds of MiB
    free_memory()
    cuda.empty_cache.assert_not_called()

def test_cuda_nested_tracks_share_one_mark(cuda):
    state = NS(now=100*M, mark=100*M)
    def hold(mib): state.now = mib*M; state.mark = max(state.mark, state.now)
    cuda.memory_allocated.side_effect = lambda d=None: state.now
    cuda.max_memory_allocated.side_effect = lambda d=None: state.mark
    cuda.reset_peak_memory_stats.side_effect = lambda d=None: setattr(state, 'mark', state.now)
    with track_memory('cuda') as outer:
        hold(900); hold(200)
        with pytest.raises(MemoryError):
            with track_memory('cuda:0') as inner:
                hold(500); hold(300)
                raise MemoryError
        with track_memory('cuda:1') as other: pass
    assert (inner.start_mib, inner.peak_mib, inner.end_mib, inner.added_mib) == (200, 500, 300, 300)
    assert (outer.start_mib, outer.peak_mib, outer.end_mib) == (100, 900, 300)
    assert not memory._open

def test_mps_samples_where_there_is_no_mark(monkeypatch):
    mps = MagicMock(name='torch.mps')
    mps.driver_allocated_memory.return_value = 700*M
    mps.current_allocated_memory.side_effect = iter([100*M, 400*M]).__next__
    monkeypatch.setattr(torch, 'mps', mps)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    def held(d, later=[100, 400, 900, 200]): return later.pop(0) if len(later) > 1 else later[0]
    r = memory_report('mps')
    assert (r.allocated_mib, r.reserved_mib, r.process_mib) == (100, 700, 700) and math.isnan(r.peak_mib)
    assert not changed(mps)
    monkeypatch.setattr(memory, '_held', held)
    with track_memory('mps') as t: __import__('time').sleep(.2)
    assert (t.start_mib, t.peak_mib, t.end_mib) == (100, 900, 200)
    free_memory()
    mps.empty_cache.assert_called_once()

@pytest.mark.parametrize('marks', [True, False])
def test_cpu_nesting_with_and_without_a_mark(monkeypatch, marks):
    if not marks: monkeypatch.setattr(memory, '_restart', lambda d: False)
    elif not memory._restart('cpu'): pytest.skip('this kernel has no resettable high-water mark')
    def work(mib): x = torch.ones(mib*M//4); __import__('time').sleep(.05); del x
    with track_memory('cpu') as outer:
        work(300)
        with track_memory('cpu') as inner: work(60)
    assert 280 < outer.added_mib < 330 and 50 < inner.added_mib < 90

@pytest.mark.skipif(__import__('platform').libc_ver()[0] != 'glibc', reason='other C libraries keep memory in other ways')
def test_memory_that_was_freed_before_hides_nothing():
    def work(mib): return torch.ones(mib*M//4)
    work(20)                                           # freed once, blocks of this size come from the heap
    many, lid = [work(20) for _ in range(10)], work(1) # and what lies under the last one stays resident when freed
    del many
    with track_memory('cpu') as t: x = work(60); del x
    assert 55 < t.added_mib < 75 and t.end_mib-t.start_mib < 10

def test_reporting_collects_nothing():
    class Node: pass
    gc.collect(); gc.disable()
    try:
        n = Node(); n.me = n; n.x = torch.ones(25*M)
        full = memory_report('cpu').process_mib
        del n
        assert memory_report('cpu').process_mib > full-10
        free_memory()
        assert memory_report('cpu').process_mib < full-90
    finally: gc.enable()

def test_plot_names_the_column_that_is_missing():
    with pytest.raises(DataError, match='peak_mib'): plot_memory(pd.DataFrame(dict(a=[1])))

def test_what_is_free_on_a_card(cuda, monkeypatch):
    nvml(monkeypatch, (os.getpid(), 3072*M))
    assert memory._budget(None, 'cuda') == (11+3-1)*1024 # all that this process holds but its tensors: the prediction has the rest
    cuda.empty_cache.assert_called()
    nvml(monkeypatch)
    assert memory._budget(None, 'cuda:0') == (11+2-1)*1024 # where the process isn't seen, the allocator's cache alone
    cuda.memory_allocated.return_value = 2048*M
    assert memory._budget(None, 'cuda') == 11*1024

def test_a_plan_is_sure_when_a_larger_process_would_fit_too():
    known = {o: plan_micro_bs('tiny_vit', 32, 8, o, overhead_mib=memory.OVERHEAD_MIB) for o in (1600, 2600)}
    assumed = {o: plan_micro_bs('tiny_vit', 32, 8, o) for o in (1600, 2600)}
    assert [known[o].sure for o in known] == [True, True] and [assumed[o].sure for o in assumed] == [False, True]
    assert known[1600].peak_mib == assumed[1600].peak_mib and 'overhead_mib=' in repr(assumed[1600]) and 'overhead_mib=' not in repr(known[1600])

@pytest.mark.parametrize('budget', [16, 22, 30, 45, 70])
def test_the_largest_micro_batch_that_fits(budget):
    kw, images = dict(precision='fp32', device='cpu'), lambda n: (40-n)*3*32*32*4/M
    need = {math.ceil(40/k): 0 for k in range(1, 41)}
    need = {n: float(predict_memory('tiny_vit', 32, n, **kw))+images(n) for n in need}
    p = plan_micro_bs('tiny_vit', 32, 40, budget, **kw)
    assert p.micro_bs == max(n for n, mib in need.items() if mib <= budget) and p.accum == math.ceil(40/p.micro_bs)
    assert p.parts['window'] == images(p.micro_bs) and p.peak_mib == pytest.approx(need[p.micro_bs])

def test_a_probe_is_refused_when_images_dont_show(monkeypatch):
    monkeypatch.setattr(memory, '_measure', lambda *what: 100.)
    with pytest.raises(SettingsError, match='larger micro_bs'): predict_memory('tiny_vit', 32, 16, 'fp32', device='cpu', probe=True)
    monkeypatch.setattr(memory, '_measure', lambda args, n, *rest: 100.+2*n)
    p = plan_micro_bs('tiny_vit', 32, 64, 150, device='cpu', precision='fp32', probe=True)
    assert (p.micro_bs, p.accum) == (22, 3) and p.peak_mib == pytest.approx(144+42*3*32*32*4/M)

@pytest.mark.parametrize('change, same', [(dict(size='64'), True), (dict(size='64x64'), True), (dict(micro_bs=4.), True),
                                          (dict(device='cuda:1'), True), (dict(in_chans=1), False)])
def test_ways_to_say_it(change, same):
    p, q = (predict_memory(**{'arch': 'tiny_convnext', 'size': 64, 'micro_bs': 4, **o}).peak_mib for o in ({}, change))
    assert (p == q) == same

def test_adamw_copies_gradients_on_a_gpu_only():
    peak = lambda device, optimizer: float(predict_memory('convnext_tiny', 32, 2, 'fp32', optimizer, device=device))
    assert peak('cpu', 'adam') == peak('cpu', 'adamw') and peak('cuda', 'adamw') > peak('cuda', 'adam')+20

@pytest.mark.parametrize('said', ['CUDA out of memory.', 'CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`',
                                  'cuDNN error: CUDNN_STATUS_ALLOC_FAILED'])
def test_a_full_card_is_known_by_what_it_says(said):
    assert _out_of_memory(RuntimeError(said)) and not _out_of_memory(RuntimeError('shape mismatch'))

def test_train_says_what_train_can_do(monkeypatch):
    s = dict(arch='tiny_convnext', size=64, effective_bs=64, accum='auto', vocab=list('abc'), model_args={})
    monkeypatch.setattr(memory, '_budget', lambda *a: 5.)
    with pytest.raises(SettingsError, match='smaller size or model') as e: _planned(s, 'cpu')
    assert 'frozen' not in str(e.value) and 'checkpointing' not in str(e.value)
    assert _planned({**s, 'accum': 3, 'micro_bs': 24}, 'cpu') == 24 and _planned({**s, 'accum': 3}, 'cpu') == 22
