"""What this package registers with nerfstudio."""

from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from eschernet_prior.dataparsers import ProceduralDataParserConfig

procedural_data = DataParserSpecification(
    config=ProceduralDataParserConfig(),
    description="An embedded, ray-traced scene with exact cameras, depth and alpha.",
)
