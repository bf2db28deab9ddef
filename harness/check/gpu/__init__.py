"""Accept this harness on one GPU: `python -m harness.check gpu`.

| module | what |
|---|---|
| `options` `command` | the command line; which parts are left, and their order |
| `plan` | the eleven steps and the parts of each |
| `finding` | what a part is told, and what it answers |
| `worker` `children` | parts are carried out in a process of their own, which may die |
| `journal` `table` | the result file: a line for each part; the tables that are made of it |
| `configured` | methods and models as conf/ configures them, without Hydra |
| `simulated` | what is done where there is no GPU |

The other modules have the steps. They need torch, triton, numpy and safetensors alone; a part that
needs more says so, and is not run where that is missing.
"""
