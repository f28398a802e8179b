"""The platform: settings, people, the audit trail, jobs, REST, the command line and the embedded product."""

import gc

# Each import and each request makes tens of thousands of objects that live on; looking through all of them for cycles
# every 700 took a fifth of the start of each process.
gc.set_threshold(50_000, 50, 100)
