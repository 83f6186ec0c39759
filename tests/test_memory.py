"The paths for devices that this machine may not have, and the promises of reporting and nesting."
import gc, math, os, sys
from types import SimpleNamespace as NS
from unittest.mock import MagicMock
import pandas as pd, pytest, torch
from vision_ft import memory
from vision_ft.accum import out_of_memory
from vision_ft.core import DataError
from vision_ft.memory import free_memory, memory_report, plot_memory, track_memory

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

outside = 77_777_777 # no process here has this number
@pytest.mark.parametrize('processes', [[], [(1, 9000*M)], [(os.getpid(), 10*M)], [(os.getpid(), None)],
                                       [(os.getpid(), 4000*M), (outside, 3072*M)], # either may be ours: numbers are those outside
                                       [(os.getpid(), 6000*M)]])                   # more than is used on the card
def test_cuda_process_invisible_in_a_container(cuda, monkeypatch, processes):
    nvml(monkeypatch, *processes)
    r = memory_report('cuda')
    assert r.process_mib == 5*1024 and r.how.startswith('device')

@pytest.mark.parametrize('others', [[(os.getppid(), 3000*M)], [(os.getppid(), 10*M), (outside, 500*M)], [(outside, 9000*M)]])
def test_cuda_process_beside_others(cuda, monkeypatch, others):
    "Processes that exist here, or that hold too little or too much to be ours, don't matter"
    nvml(monkeypatch, (os.getpid(), 3072*M), *others)
    r = memory_report('cuda')
    assert r.process_mib == 3072 and r.how.startswith('process')

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
    assert not memory._open_tracks

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
    monkeypatch.setattr(memory, '_held_mib', held)
    with track_memory('mps') as t: __import__('time').sleep(.2)
    assert (t.start_mib, t.peak_mib, t.end_mib) == (100, 900, 200)
    free_memory()
    mps.empty_cache.assert_called_once()

@pytest.mark.parametrize('marks', [True, False])
def test_cpu_nesting_with_and_without_a_mark(monkeypatch, marks):
    if not marks: monkeypatch.setattr(memory, '_reset_peak', lambda d: False)
    elif not memory._reset_peak('cpu'): pytest.skip('this kernel has no resettable high-water mark')
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

@pytest.mark.parametrize('said', ['CUDA out of memory.', 'CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`',
                                  'cuDNN error: CUDNN_STATUS_ALLOC_FAILED'])
def test_a_full_card_is_known_by_what_it_says(said):
    assert out_of_memory(RuntimeError(said)) and not out_of_memory(RuntimeError('shape mismatch'))
