"""The registered dataparsers.

nerfstudio imports this while its own data managers are still being imported: nothing that needs them may stand here.
"""

from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from eschernet_prior.dataparsers import ProceduralDataParserConfig
from eschernet_prior.render_dataparser import ObjaverseDataParserConfig

procedural_data = DataParserSpecification(
    config=ProceduralDataParserConfig(),
    description="An embedded, ray-traced scene with exact cameras, depth and alpha.",
)

objaverse_data = DataParserSpecification(
    config=ObjaverseDataParserConfig(),
    description="Renders of one object: NNN.png with world-to-camera NNN.npy, as Objaverse and GSO renders come.",
)
