"""An activation store in words."""

from interp.store import ActivationStore


def describe_store(store: ActivationStore) -> str:
    """What a store holds, from what, and what was left out; one block per part."""
    manifest = store.manifest
    size = sum(entry["bytes"] for entry in manifest["shards"]) / 2**20
    shapes = ", ".join(f"{name} {tuple(shape)}" for name, shape in manifest["row_shapes"].items())
    lines = [
        f"store      {store.path}",
        f"rows       {len(store):,} of {manifest['dtype']} in {len(manifest['shards'])} shards, {size:,.1f} MiB",
        f"sites      {shapes}",
        *(_error(site, found) for site, found in store.error.items()),
    ]
    for part, spec in zip(manifest["parts"], store.specs, strict=True):
        revision = f", revision {spec.revision}" if spec.revision else ""
        bos = "no BOS" if spec.bos is None else f"BOS {spec.bos} before every window"
        out = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in part["excluded"].items() if count)
        lines += [
            "",
            f"model      {spec.model}{revision}, computed in {spec.compute_dtype}",
            f"text       {part['tokens']:,} tokens of {part['documents']:,} documents",
            f"windows    at most {spec.max_length} tokens, {bos}",
            f"left out   {out or 'nothing'}; padding was {part['padding_waste']:.2%} of what was run",
            f"corpus     {spec.corpus}",
            f"tokens     {spec.tokens}",
            f"seed       {spec.seed}, plan in {part['plan']}, {part['splits']} splits for want of memory",
            f"versions   {', '.join(f'{name} {version}' for name, version in part['versions'].items())}",
        ]
    return "\n".join(lines)


def _error(site: str, found: dict[str, float]) -> str:
    """What the format on disk costs: the part of a row's squared norm that is lost."""
    return (
        f"error      {site}: {found['mean']:.1e} of a row's squared norm on average, {found['worst']:.1e} at most; "
        f"{found['overall']:.1e} over all rows"
    )
