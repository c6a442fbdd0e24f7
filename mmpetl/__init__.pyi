# SPDX-License-Identifier: Apache-2.0
# What `import mmpetl` gives, for editors and type checkers: the package itself imports these names when they are used.

from .apis import AdapterBank as AdapterBank
from .apis import attach as attach
from .apis import disabled as disabled
from .apis import infer as infer
from .apis import load_adapter as load_adapter
from .apis import load_peft as load_peft
from .apis import merge as merge
from .apis import push as push
from .apis import save_adapter as save_adapter
from .apis import save_peft as save_peft
from .apis import summary as summary
from .version import __version__ as __version__

__all__: list[str]
