import subprocess
import sys
from types import FunctionType

import funnelrank


def test_every_name_of_all_is_there_and_nothing_else_is_promised():
    assert sorted(funnelrank._MODULE) == sorted(funnelrank.__all__) == dir(funnelrank)
    for name in funnelrank.__all__:
        assert isinstance(getattr(funnelrank, name), type | FunctionType), name


def test_importing_the_package_imports_no_torch():
    code = "import sys, funnelrank; assert not {'torch', 'pyarrow', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
