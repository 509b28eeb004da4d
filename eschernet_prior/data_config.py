"""The registered dataparsers.

nerfstudio imports this module while importing its own data managers: do not import anything here that needs them.
"""

from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from eschernet_prior.data.objaverse_dataparser import ObjaverseDataParserConfig
from eschernet_prior.data.photos_dataparser import PhotosDataParserConfig
from eschernet_prior.procedural.dataparser import ProceduralDataParserConfig

procedural_data = DataParserSpecification(
    config=ProceduralDataParserConfig(),
    description="An embedded, ray-traced scene with exact cameras, depth and alpha.",
)

objaverse_data = DataParserSpecification(
    config=ObjaverseDataParserConfig(),
    description="Renders of one object: NNN.png with world-to-camera NNN.npy, the layout of Objaverse and GSO renders.",
)

photos_data = DataParserSpecification(
    config=PhotosDataParserConfig(),
    description="A folder of photos, or a video: COLMAP finds the poses on first use, and they are cached.",
)
