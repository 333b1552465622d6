// A .glb of Gaussians as three.js reads it: centres, covariances (xx, xy, xz, yy, yz, zz) and colours, as JSON.
import { readFileSync } from 'node:fs';
import { GLTFLoader } from 'three/addons/loaders/GLTFLoader.js';
import { GLTFGaussianSplatLoaderExtension } from 'three/addons/loaders/GLTFGaussianSplatLoaderExtension.js';

globalThis.self ??= globalThis;
const file = readFileSync(process.argv[2]);
const loader = new GLTFLoader();
loader.register((parser) => new GLTFGaussianSplatLoaderExtension(parser));
const { scene } = await loader.parseAsync(file.buffer.slice(file.byteOffset, file.byteOffset + file.length), '');
scene.updateMatrixWorld(true);
let splats;
scene.traverse((each) => { if (each.constructor.name === 'GaussianSplat') splats = each; });
const attributes = {};
for (const [name, attribute] of Object.entries(splats.splatGeometry.attributes)) {
  attributes[name] = { size: attribute.itemSize, values: Array.from(attribute.array) };
}
process.stdout.write(JSON.stringify({ matrix: splats.matrixWorld.elements, attributes }));
