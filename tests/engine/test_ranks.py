import torch.distributed
import torch.multiprocessing

from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.ranks import on_first_rank


def _work(rank, folder):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2
    )

    def note(value):
        with (folder / 'calls').open('a') as calls:
            calls.write(f'{rank} ')
        if value is None:
            raise KeyError('no such class')
        return value

    kept = on_first_rank(note, [7])
    try:
        on_first_rank(note, None)
    except Exception as error:
        (folder / f'{rank}').write_text(f'{kept} {type(error).__name__} {error}')
    torch.distributed.destroy_process_group()


def test_the_first_process_works_and_fails_for_all(tmp_path):
    torch.multiprocessing.start_processes(_work, (tmp_path,), nprocs=2, start_method='fork')
    assert (tmp_path / 'calls').read_text() == '0 0 '
    assert (tmp_path / '0').read_text() == "[7] KeyError 'no such class'"
    assert (tmp_path / '1').read_text() == (
        f'[7] {ToolError.__name__} stopped with the first process: no such class'
    )
