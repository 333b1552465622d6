// Gaussians in WebGL2, as the program's own rasterizer draws them: the same projection, blur, cutoff and blending.
// `Splats` draws from one place; `Orbit` is a camera that a mouse, fingers and keys move around the object.
"use strict";

const WIDTH = 2048;  // texels in a row of the table; every WebGL2 has so many

const VERTEX = `#version 300 es
precision highp float; precision highp int; precision highp usampler2D;
uniform usampler2D table;
uniform int texels, degree;
uniform mat3 turn;      // world to camera: x right, y down, z forward
uniform vec3 eye;
uniform vec2 size;      // pixels
uniform float focal, blur;
in vec2 corner;
in uint index;
flat out vec4 colour;
out vec2 place;         // standard deviations from the centre

uvec4 texel(int k) {
  int at = int(index) * texels + k;
  return texelFetch(table, ivec2(at % ${WIDTH}, at / ${WIDTH}), 0);
}
vec2 signed16(uint word) {
  return vec2(float(int(word << 16) >> 16), float(int(word) >> 16)) / 32767.0;
}
vec3 harmonic(int k) {
  vec3 c;
  for (int channel = 0; channel < 3; channel++) {
    int at = (k - 1) * 3 + channel;
    vec2 pair = unpackHalf2x16(texel(2 + at / 8)[(at % 8) / 2]);
    c[channel] = at % 2 == 0 ? pair.x : pair.y;
  }
  return c;
}
vec3 harmonics(vec3 d) {
  float x = d.x, y = d.y, z = d.z, xx = x * x, yy = y * y, zz = z * z;
  vec3 sum = vec3(0.0);
  if (degree > 0) sum += 0.4886025119029199 * (-y * harmonic(1) + z * harmonic(2) - x * harmonic(3));
  if (degree > 1) sum += 1.0925484305920792 * (x * y * harmonic(4) - y * z * harmonic(5) - x * z * harmonic(7))
    + 0.31539156525252005 * (2.0 * zz - xx - yy) * harmonic(6) + 0.5462742152960396 * (xx - yy) * harmonic(8);
  if (degree > 2) sum += -0.5900435899266435 * (y * (3.0 * xx - yy) * harmonic(9) + x * (xx - 3.0 * yy) * harmonic(15))
    + 2.890611442640554 * x * y * z * harmonic(10) + 1.445305721320277 * z * (xx - yy) * harmonic(14)
    - 0.4570457994644658 * (4.0 * zz - xx - yy) * (y * harmonic(11) + x * harmonic(13))
    + 0.3731763325901154 * z * (2.0 * zz - 3.0 * xx - 3.0 * yy) * harmonic(12);
  return sum;
}

void main() {
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0);  // outside: not drawn
  colour = vec4(0.0);
  place = vec2(0.0);
  uvec4 a = texel(0), b = texel(1);
  vec3 mean = uintBitsToFloat(a.xyz), t = turn * (mean - eye);
  if (t.z <= 0.2) return;
  vec2 rg = unpackHalf2x16(a.w), blue = unpackHalf2x16(b.x), s01 = unpackHalf2x16(b.y);
  float opacity = blue.y;
  if (opacity * 255.0 <= 1.0) return;
  vec3 s = exp(vec3(s01, unpackHalf2x16(b.z).x));
  vec3 q = vec3(signed16(b.z).y, signed16(b.w));
  float w = sqrt(max(0.0, 1.0 - dot(q, q)));
  mat3 rotation = mat3(
    1.0 - 2.0 * (q.y * q.y + q.z * q.z), 2.0 * (q.x * q.y + w * q.z), 2.0 * (q.x * q.z - w * q.y),
    2.0 * (q.x * q.y - w * q.z), 1.0 - 2.0 * (q.x * q.x + q.z * q.z), 2.0 * (q.y * q.z + w * q.x),
    2.0 * (q.x * q.z + w * q.y), 2.0 * (q.y * q.z - w * q.x), 1.0 - 2.0 * (q.x * q.x + q.y * q.y));
  mat3 m = turn * rotation * mat3(s.x, 0.0, 0.0, 0.0, s.y, 0.0, 0.0, 0.0, s.z);
  vec2 limit = 1.3 * 0.5 * size / focal, ray = clamp(t.xy / t.z, -limit, limit);
  // rows of the projection's Jacobian times m: the covariance is their products
  vec3 u = focal / t.z * (vec3(m[0].x, m[1].x, m[2].x) - ray.x * vec3(m[0].z, m[1].z, m[2].z));
  vec3 v = focal / t.z * (vec3(m[0].y, m[1].y, m[2].y) - ray.y * vec3(m[0].z, m[1].z, m[2].z));
  float xx = dot(u, u) + blur, yy = dot(v, v) + blur, xy = dot(u, v);
  float mid = 0.5 * (xx + yy), half_gap = length(vec2(0.5 * (xx - yy), xy));
  float large = mid + half_gap, small = max(mid - half_gap, 1e-6);
  float angle = 0.5 * atan(2.0 * xy, xx - yy);
  vec2 axis = vec2(cos(angle), sin(angle));
  float reach = sqrt(2.0 * log(255.0 * opacity));  // where alpha is 1/255, under which nothing is blended
  place = corner * reach;
  vec2 offset = place.x * sqrt(large) * axis + place.y * sqrt(small) * vec2(-axis.y, axis.x);
  vec2 pixel = focal * t.xy / t.z + offset;
  gl_Position = vec4(pixel / (0.5 * size) * vec2(1.0, -1.0), 0.0, 1.0);
  colour = vec4(max(vec3(rg, blue.x) + harmonics(normalize(mean - eye)), 0.0), opacity);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
flat in vec4 colour;
in vec2 place;
out vec4 blended;
void main() {
  float alpha = min(0.99, colour.a * exp(-0.5 * dot(place, place)));
  if (alpha < 1.0 / 255.0) discard;
  blended = vec4(colour.rgb * alpha, alpha);
}`;

function decoded(text) {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

class Splats {
  // `about`: count, texels, degree, width, height and fov (radians, across the width) of the run's images.
  // Throws where there is no WebGL2.
  constructor(canvas, about, bytes) {
    this.canvas = canvas;
    this.about = about;
    this.words = new Uint32Array(Math.ceil(bytes.length / 16 / WIDTH) * WIDTH * 4);
    new Uint8Array(this.words.buffer).set(bytes);
    this.positions = new Float32Array(this.words.buffer);
    this.depths = new Float32Array(about.count);
    this.order = new Uint32Array(about.count);
    this.places = new Uint32Array(65537);
    this.build();
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => { this.build(); this.onrestored?.(); });
  }

  build() {
    const gl = this.canvas.getContext("webgl2", {alpha: false, antialias: false});
    if (!gl) throw new Error("no WebGL2");
    this.gl = gl;
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS) && !gl.isContextLost())
        throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(program, shader);
    }
    gl.bindAttribLocation(program, 0, "corner");
    gl.bindAttribLocation(program, 1, "index");
    gl.linkProgram(program);
    gl.useProgram(program);
    this.uniforms = Object.fromEntries(["table", "texels", "degree", "turn", "eye", "size", "focal", "blur"]
      .map((name) => [name, gl.getUniformLocation(program, name)]));
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, filter, gl.NEAREST);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32UI, WIDTH, this.words.length / 4 / WIDTH, 0, gl.RGBA_INTEGER, gl.UNSIGNED_INT,
      this.words);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 1, -1, -1, 1, 1, 1]), gl.STATIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 2, gl.FLOAT, false, 0, 0);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.enableVertexAttribArray(1);
    gl.vertexAttribIPointer(1, 1, gl.UNSIGNED_INT, 0, 0);
    gl.vertexAttribDivisor(1, 1);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  }

  // Farthest first, by counting: depths in 65536 steps of their range.
  sort(forward, eye) {
    const {positions, depths, order, places} = this, stride = this.about.texels * 4, count = this.about.count;
    let near = Infinity, far = -Infinity;
    for (let i = 0, at = 0; i < count; i++, at += stride) {
      const depth = (positions[at] - eye[0]) * forward[0] + (positions[at + 1] - eye[1]) * forward[1]
        + (positions[at + 2] - eye[2]) * forward[2];
      depths[i] = depth;
      if (depth < near) near = depth;
      if (depth > far) far = depth;
    }
    const scale = 65535 / Math.max(far - near, 1e-9);
    places.fill(0);
    for (let i = 0; i < count; i++) places[((far - depths[i]) * scale | 0) + 1]++;
    for (let i = 0; i < 65536; i++) places[i + 1] += places[i];
    for (let i = 0; i < count; i++) order[places[(far - depths[i]) * scale | 0]++] = i;
  }

  // `pose`: eye, right, down and forward in the world; `background`: red, green, blue in 0..1.
  draw(pose, background) {
    const {gl, canvas, about, uniforms} = this, {eye, right, down, forward} = pose;
    if (gl.isContextLost()) return;
    const fit = Math.min(canvas.width / about.width, canvas.height / about.height) / (pose.zoom ?? 1);
    this.sort(forward, eye);
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clearColor(...background, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.bufferData(gl.ARRAY_BUFFER, this.order, gl.DYNAMIC_DRAW);
    gl.uniform1i(uniforms.table, 0);
    gl.uniform1i(uniforms.texels, about.texels);
    gl.uniform1i(uniforms.degree, about.degree);
    gl.uniformMatrix3fv(uniforms.turn, false, [0, 1, 2].flatMap((k) => [right[k], down[k], forward[k]]));
    gl.uniform3fv(uniforms.eye, eye);
    gl.uniform2f(uniforms.size, canvas.width, canvas.height);
    gl.uniform1f(uniforms.focal, fit * about.width / 2 / Math.tan(about.fov / 2));
    gl.uniform1f(uniforms.blur, 0.3 * Math.max(1, fit * fit));  // as wide, in the picture, as the run saw it
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, about.count);
  }
}

const subtract = (a, b) => a.map((x, k) => x - b[k]);
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const unit = (a) => { const n = Math.hypot(...a); return a.map((x) => x / n); };
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

class Orbit {
  // `home`: azimuth and polar in degrees, radius. `changed` is called whenever the camera has moved.
  constructor(canvas, home, changed) {
    this.home = {azimuth: 0, polar: 90, radius: 3.5, target: [0, 0, 0], ...home};
    this.changed = changed;
    this.canvas = canvas;
    this.reset(false);
    this.listen();
  }

  reset(tell = true) {
    Object.assign(this, this.home, {target: [...this.home.target]});
    if (tell) this.changed();
  }

  get pose() {
    const a = this.azimuth * Math.PI / 180, p = this.polar * Math.PI / 180;
    const out = [Math.sin(p) * Math.sin(a), Math.sin(p) * Math.cos(a), Math.cos(p)];
    const forward = out.map((x) => -x), right = unit(cross(forward, [0, 0, 1]));
    const eye = this.target.map((x, k) => x + this.radius * out[k]);
    return {eye, right, down: cross(forward, right), forward};
  }

  turn(azimuth, polar) {
    this.azimuth = ((this.azimuth + azimuth) % 360 + 360) % 360;
    this.polar = clamp(this.polar + polar, 1, 179);
    this.changed();
  }

  approach(factor) {
    this.radius = clamp(this.radius * factor, 0.05 * this.home.radius, 10 * this.home.radius);
    this.changed();
  }

  pan(dx, dy) {
    const {right, down} = this.pose;
    this.target = this.target.map((x, k) => x - this.radius * (dx * right[k] + dy * down[k]));
    this.changed();
  }

  listen() {
    const {canvas} = this, fingers = new Map();
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, event);
      this.onmoved?.();
    });
    const lift = (event) => fingers.delete(event.pointerId);
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, lift);
    canvas.addEventListener("pointermove", (event) => {
      const last = fingers.get(event.pointerId);
      if (!last) return;
      const side = Math.min(canvas.clientWidth, canvas.clientHeight);
      const dx = (event.clientX - last.clientX) / side, dy = (event.clientY - last.clientY) / side;
      if (fingers.size === 2) {
        const other = [...fingers.values()].find((finger) => finger.pointerId !== event.pointerId);
        const apart = (finger) => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY);
        this.approach(apart(last) / Math.max(apart(event), 1));
        this.pan(dx / 4, dy / 4);
      } else if (event.shiftKey || last.button > 0) {
        this.pan(dx / 2, dy / 2);
      } else {
        this.turn(180 * dx, -180 * dy);
      }
      fingers.set(event.pointerId, Object.defineProperty(event, "button", {value: last.button}));
    });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas) return;  // the page scrolls on until the picture is chosen
      event.preventDefault();
      this.onmoved?.();
      this.approach(Math.exp(clamp(event.deltaY, -100, 100) / 500));
    }, {passive: false});
    const keys = {
      ArrowLeft: () => this.turn(-10, 0), ArrowRight: () => this.turn(10, 0),
      ArrowUp: () => this.turn(0, -10), ArrowDown: () => this.turn(0, 10),
      "+": () => this.approach(0.9), "=": () => this.approach(0.9), "-": () => this.approach(1 / 0.9),
      Home: () => this.reset(),
    };
    canvas.addEventListener("keydown", (event) => {
      if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      this.onmoved?.();
      keys[event.key]();
    });
  }
}
