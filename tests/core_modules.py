"""The modules that run on a machine with the core's packages alone (DESIGN, section 2)."""

CORE = (
    "interp.sites interp.anatomy interp.model interp.loading interp.batching interp.store interp.extract "
    "interp.effects interp.tokenfile interp.generate interp.lens interp.loop interp.plan interp.stats "
    "interp.patching interp.probes interp.moments interp.steering.fit interp.steering.steering interp.steering.fold "
    "interp.steering.lora "
    "interp.bench.shapes interp.bench.ceilings interp.bench.extraction interp.bench.report "
    "saes.codes saes.activations saes.sae saes.losses saes.train saes.evaluate saes.bench midlens_kernels"
).split()
