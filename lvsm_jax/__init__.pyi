from .models.cameras import Cameras as Cameras
from .models.efficient_lvsm import EfficientLVSM as EfficientLVSM
from .models.efficient_lvsm import EfficientLVSMConfig as EfficientLVSMConfig
from .models.gs_lrm import GSLRM as GSLRM
from .models.gs_lrm import GSLRMConfig as GSLRMConfig
from .models.lvsm import LVSMDecoderOnly as LVSMDecoderOnly
from .models.lvsm import LVSMDecoderOnlyConfig as LVSMDecoderOnlyConfig
from .models.lvsm import LVSMEncoderDecoder as LVSMEncoderDecoder
from .models.lvsm import LVSMEncoderDecoderConfig as LVSMEncoderDecoderConfig
from .rendering.latents import LatentCache as LatentCache
from .rendering.latents import latent_cache as latent_cache
from .rendering.session import Session as Session
from .rendering.view_cache import ViewCache as ViewCache
from .rendering.view_cache import add_views as add_views
from .rendering.view_cache import init_cache as init_cache
from .rendering.view_cache import remove_views as remove_views
from .rendering.view_cache import render as render
from .rendering.view_cache import render_path as render_path
from .rendering.view_cache import replace_view as replace_view
from .scenes.photograph import Photograph as Photograph
from .scenes.photograph import PosedCamera as PosedCamera
from .weights import convert as convert
from .weights import torch_file as torch_file
from .weights.exports import load as load
from .weights.exports import save as save

__version__: str
