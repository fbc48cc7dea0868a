"""Write a software bill of materials in the format CycloneDX 1.6."""

from __future__ import annotations

from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from deploy.dev.supply.image_content import Content, Package

OWN_NAME = "sealci-agent"


def write(content: Content, target: Path) -> None:
    """Write the packages of an image as a bill of materials. The agent itself is the described component."""
    (agent,) = (as_component(package) for package in content.packages if package.name == OWN_NAME)
    others = [as_component(package) for package in content.packages if package.name != OWN_NAME]
    bom = Bom(components=others, metadata=BomMetaData(component=agent))
    bom.register_dependency(agent, others)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(JsonV1Dot6(bom).output_as_string(indent=2) + "\n", "utf-8")


def as_component(package: Package) -> Component:
    qualifiers = {"arch": package.architecture} if package.architecture else {}
    namespace = "debian" if package.kind == "deb" else None
    name = package.name.lower().replace("_", "-") if package.kind == "pypi" else package.name
    url = PackageURL(package.kind, namespace, name, package.version, qualifiers)
    return Component(
        type=ComponentType.CONTAINER if package.name == OWN_NAME else ComponentType.LIBRARY,
        name=package.name,
        version=package.version,
        purl=url,
        bom_ref=url.to_string(),
        licenses=[LicenseFactory().make_from_string(package.licence)] if package.licence else (),
    )
