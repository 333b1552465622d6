// A .glb as three.js loads it: triangles, bounds, the kind of its material and of its texture's colours, as JSON.
import { readFileSync } from 'node:fs';
import { Box3, Texture } from 'three';
import { GLTFLoader } from 'three/addons/loaders/GLTFLoader.js';

globalThis.self ??= globalThis;
const file = readFileSync(process.argv[2]);
const loader = new GLTFLoader();
let bytes = 0; // Node has no pictures: what the file holds is counted instead
loader.register((parser) => ({
  name: 'pictures',
  loadTexture: async (index) => {
    const source = parser.json.images[parser.json.textures[index].source];
    bytes = (await parser.getDependency('bufferView', source.bufferView)).byteLength;
    return new Texture();
  },
}));
const { scene } = await loader.parseAsync(file.buffer.slice(file.byteOffset, file.byteOffset + file.length), '');
scene.updateMatrixWorld(true);
const box = new Box3().setFromObject(scene);
const found = { faces: 0, materials: [], colorSpaces: [], bytes, box: [box.min.toArray(), box.max.toArray()] };
scene.traverse((each) => {
  if (!each.isMesh) return;
  found.faces += each.geometry.index.count / 3;
  found.materials.push(each.material.type);
  found.colorSpaces.push(each.material.map?.colorSpace);
});
process.stdout.write(JSON.stringify(found));
