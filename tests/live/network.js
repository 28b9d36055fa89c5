"use strict";
/* A trained model, run by hand on one state: what mtdiff.backbones.UNet and mt.sample_path(rule="conditioned") compute, from
   the file of weights that mtdiff ships; and MTDiffusion.forward for images and labels (any.js has it for scenes). A map is
   its channels * n * n numbers in a row, a vector a map of one pixel. */

/** The parameters of a safetensors file (bytes), by their names: "a.0.b" is at .a[0].b, {shape, data}. */
function parameters(bytes) {
  const view = new DataView(bytes.buffer), start = 8 + Number(view.getBigUint64(0, true)), root = {};
  const kinds = {
    F16: [2, (at) => half(view.getUint16(at, true))],
    F32: [4, (at) => view.getFloat32(at, true)],
    F64: [8, (at) => view.getFloat64(at, true)],
  };
  const { __metadata__, ...entries } = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(entries)) {
    const [size, read] = kinds[dtype], path = name.split(/[./]/), last = path.pop();
    const data = Float64Array.from({ length: (to - from) / size }, (_, i) => read(start + from + i * size));
    path.reduce((place, part) => (place[part] ??= {}), root)[last] = { shape, data };
  }
  return root;
}

/** A finite number in half precision, of its bits. */
function half(bits) {
  const exponent = (bits >> 10) & 31, fraction = bits & 1023;
  return (bits >> 15 ? -1 : 1) * (exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24);
}

const add = (a, b) => a.map((x, i) => x + b[i]);
const silu = (a) => a.map((x) => x / (1 + Math.exp(-x)));

function softmax(a) {
  const top = Math.max(...a), chances = a.map((x) => Math.exp(x - top)), sum = chances.reduce((s, x) => s + x);
  return chances.map((x) => x / sum);
}

/** A convolution that keeps the size, or halves it by stride 2; of a vector a linear layer. */
function conv(x, { weight, bias }, stride = 1) {
  const [outs, ins, k = 1] = weight.shape, n = Math.sqrt(x.length / ins), m = n / stride, pad = (k - 1) / 2;
  const terms = ins * k * k, size = m * m, seen = new Float64Array(terms * size), y = new Float64Array(outs * size);
  for (let term = 0; term < terms; term++) {
    const c = Math.floor(term / (k * k)), dy = (Math.floor(term / k) % k) - pad, dx = (term % k) - pad;
    for (let i = 0; i < size; i++) {
      const row = Math.floor(i / m) * stride + dy, col = (i % m) * stride + dx;
      if (row >= 0 && row < n && col >= 0 && col < n) seen[term * size + i] = x[(c * n + row) * n + col];
    }
  }
  for (let out = 0; out < outs; out++) {
    const mine = y.subarray(out * size, (out + 1) * size).fill(bias.data[out]);
    for (let term = 0; term < terms; term++) {
      const w = weight.data[out * terms + term], from = term * size;
      for (let i = 0; i < size; i++) mine[i] += w * seen[from + i];
    }
  }
  return y;
}

/** Group normalisation; `film` is a scale and then a shift for each channel. */
function norm(x, { weight, bias }, film = null) {
  const channels = weight.data.length, size = x.length / channels, y = new Float64Array(x.length);
  let groups = Math.min(32, Math.max(1, Math.floor(channels / 4)));
  while (channels % groups) groups--;
  const part = x.length / groups;
  for (let from = 0; from < x.length; from += part) {
    const mine = x.subarray(from, from + part), mean = mine.reduce((s, v) => s + v) / part;
    const std = Math.sqrt(mine.reduce((s, v) => s + (v - mean) ** 2, 0) / part + 1e-5);
    for (let i = from; i < from + part; i++) {
      const c = Math.floor(i / size), value = ((x[i] - mean) / std) * weight.data[c] + bias.data[c];
      y[i] = film ? value * (1 + film[c]) + film[channels + c] : value;
    }
  }
  return y;
}

/** Self-attention in one head, added to its input. */
function attention(x, layer) {
  const all = conv(norm(x, layer.norm), layer.qkv), c = layer.norm.weight.data.length, n = x.length / c;
  const [q, k, v] = [0, 1, 2].map((part) => all.subarray(part * c * n, (part + 1) * c * n));
  const out = new Float64Array(x.length), dot = (i, j) => {
    let sum = 0;
    for (let a = 0; a < c; a++) sum += q[a * n + i] * k[a * n + j];
    return sum;
  };
  for (let i = 0; i < n; i++) {
    const looks = softmax(Float64Array.from({ length: n }, (_, j) => dot(i, j) / Math.sqrt(c)));
    for (let a = 0; a < c; a++) for (let j = 0; j < n; j++) out[a * n + i] += looks[j] * v[a * n + j];
  }
  return add(x, conv(out, layer.out));
}

/** A residual block, and attention where it has some. */
function stage(x, layer, level) {
  const h = norm(conv(silu(norm(x, layer.norm1)), layer.conv1), layer.norm2, conv(level, layer.film));
  const y = add(layer.skip ? conv(x, layer.skip) : x, conv(silu(h), layer.conv2));
  return layer.attention ? attention(y, layer.attention) : y;
}

/** Each pixel as two by two. */
function doubled(x, channels) {
  const n = Math.sqrt(x.length / channels), row = (i) => Math.floor(i / (2 * n)) >> 1, col = (i) => (i % (2 * n)) >> 1;
  return Float64Array.from({ length: 4 * x.length }, (_, i) => x[row(i) * n + col(i)]);
}

function joined(a, b) {
  const out = new Float64Array(a.length + b.length);
  out.set(a);
  out.set(b, a.length);
  return out;
}

/** The means of `cells` by `cells` parts of a map. */
function pool(x, channels, cells) {
  const n = Math.sqrt(x.length / channels), part = n / cells, out = new Float64Array(channels * cells * cells);
  for (let i = 0; i < x.length; i++) {
    const row = Math.floor((Math.floor(i / n) % n) / part), col = Math.floor((i % n) / part);
    out[(Math.floor(i / (n * n)) * cells + row) * cells + col] += x[i] / (part * part);
  }
  return out;
}

/** The U-Net: (z, noise level u, condition or null, context or null) -> the map that heads read, and the pooled vector. */
function unet(net, z, u, condition, context = null, cells = 1) {
  const count = net.level.mlp[0].weight.shape[1] / 2;
  const angles = Array.from({ length: count }, (_, i) => u * 1000 ** (i / (count - 1)));
  const waves = Float64Array.from([...angles.map(Math.sin), ...angles.map(Math.cos)]);
  let level = conv(silu(conv(waves, net.level.mlp[0])), net.level.mlp[2]);
  level = silu(condition ? add(level, condition) : level);
  let h = context ? add(conv(z, net.enter), context) : conv(z, net.enter);
  const skips = [h];
  for (const layer of Object.values(net.down)) {
    h = layer.conv ? conv(h, layer.conv, 2) : stage(h, layer, level);
    skips.push(h);
  }
  for (const layer of Object.values(net.middle)) h = stage(h, layer, level);
  const pooled = pool(silu(norm(h, net.pool_norm)), net.pool_norm.weight.data.length, cells);
  for (const layer of Object.values(net.up)) {
    h = layer.conv ? conv(doubled(h, layer.conv.weight.shape[1]), layer.conv) : stage(joined(h, skips.pop()), layer, level);
  }
  return [silu(norm(h, net.norm)), pooled];
}

/** Whether this script runs a backbone, by its card's config, in which a default may be missing. */
function walks({ kind, base = 32, multipliers = [1, 2], head_channels: each = 64, cross = [] }) {
  return kind === "UNet" && !cross.length && base * Math.max(...multipliers) < 2 * each;
}

/** A model as a page has it, {config, weights} of its card and its file in base64, and its reverse chain. A kind of model
    adds `look`: what it says at a state, {aggregate: E[m_t | z_t], codes: {name: E[E_i(x_i) | z_t] of what moves}, ...}. */
class Chain {
  constructor({ config, weights }) {
    const { process, ...net } = parameters(Uint8Array.from(atob(weights), (c) => c.charCodeAt(0)));
    const { abar, ...curves } = Object.fromEntries(Object.entries(process).map(([name, table]) => [name, table.data]));
    Object.assign(this, { config, net, abar, W: curves, T: abar.length - 1, first: abar[0] === 1 ? 1 : 0 });
    this.size = config.space.reduce((a, b) => a * b);
  }

  /** The steps of a chain from T down in so many intervals, halves to the even number as PyTorch rounds them. */
  times(intervals) {
    const each = (this.first - this.T) / intervals, even = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));
    const at = (k) => (2 * k < intervals + 1 ? this.T + k * each : this.first - (intervals - k) * each);
    return Array.from({ length: intervals + 1 }, (_, k) => even(at(k)));
  }

  /** From z_T down, by DDIM, or ancestrally where there is noise to draw: size -> numbers. Yields what `look` says at each
      step, with t and z. */
  *path(z, intervals, given, guidance = 1, noise = null) {
    const times = this.times(intervals);
    for (const [k, t] of times.entries()) {
      const seen = this.look(z, t, given, guidance), s = times[k + 1];
      yield { t, z, ...seen };
      if (s !== undefined) z = noise ? this.ddpm(z, t, s, seen, noise(this.size)) : this.ddim(z, t, s, seen);
    }
  }

  /** m_s = m_t + sum_i (W_s^i - W_t^i) e_i (theory 4). */
  moved({ aggregate, codes }, t, s) {
    return Object.entries(codes).reduce((m, [name, code]) => {
      const step = this.W[name][s] - this.W[name][t];
      return m.map((x, i) => x + step * code[i]);
    }, aggregate);
  }

  /** z_s = sqrt(abar_s) m_s + sqrt(1 - abar_s) eps. */
  ddim(z, t, s, seen) {
    const [abar, then] = [this.abar[t], this.abar[s]], m = this.moved(seen, t, s);
    return z.map((x, i) => {
      const eps = (x - Math.sqrt(abar) * seen.aggregate[i]) / Math.sqrt(1 - abar);
      return Math.sqrt(then) * m[i] + Math.sqrt(1 - then) * eps;
    });
  }

  /** z_s from q(z_s | z_t, X), with the estimates for X (`ForwardProcess.back`). */
  ddpm(z, t, s, seen, noise) {
    const [abar, then] = [this.abar[t], this.abar[s]], a = abar / then, m = this.moved(seen, t, s);
    const ofZ = (Math.sqrt(a) * (1 - then)) / (1 - abar), ofM = (Math.sqrt(then) * (1 - a)) / (1 - abar);
    const std = Math.sqrt(((1 - a) * (1 - then)) / (1 - abar));
    return z.map((x, i) => ofZ * (x - Math.sqrt(abar) * (seen.aggregate[i] - m[i])) + ofM * m[i] + std * noise[i]);
  }
}

/** Whether a model is an image's and a label's that `Model` runs. */
function runs({ kind, prediction, prior, remove_known: removed, backbone, modalities: { image, label } }) {
  const picture = image?.kind === "Image" && image.head !== false && !image.channels && (image.start ?? "state") === "state";
  const word = label?.kind === "Label" && label.codes === "simplex" && !label.channels && !label.sense;
  const whole = kind === "MTDiffusion" && prediction === "v" && !prior && !removed;
  return whole && walks(backbone) && (backbone.cells ?? 1) === 1 && picture && word && label.tell !== "tokens";
}

/** A model of an image and a label; given is a label or null. */
class Model extends Chain {
  constructor(model) {
    super(model);
    if (!runs(this.config) || this.W.image.some((w) => w !== 1)) {
      throw new Error("only a U-Net that predicts v of a label and an image of weight 1 can be run here");
    }
  }

  /** The code of each class, (K, *Z) in a row, mixed: sum_k chances_k c_k. */
  code(chances) {
    const codes = this.net.modalities.label.codes.data, at = (k, i) => chances[k] * codes[k * this.size + i];
    return Float64Array.from({ length: this.size }, (_, i) => chances.reduce((sum, _, k) => sum + at(k, i), 0));
  }

  /** What the model says of z_t, given a label or null: E[m_t | z_t], the image's mean, p(label | z_t). */
  predict(z, t, label = null) {
    const { image, label: words } = this.net.modalities, width = words.embed.weight.shape[1];
    const told = label === null ? null : words.embed.weight.data.subarray(label * width, (label + 1) * width);
    const [features, pooled] = unet(this.net.backbone, z, t / this.T, told);
    const signal = Math.sqrt(this.abar[t]), noise = Math.sqrt(1 - this.abar[t]);
    const v = conv(features, this.net.denoise), rest = conv(features, image.out);
    return {
      aggregate: z.map((x, i) => signal * x - noise * v[i]),
      image: z.map((x, i) => signal * x + noise * rest[i]),
      chances: softmax(conv(silu(conv(pooled, words.out[0])), words.out[2])),
    };
  }

  /** The same with classifier-free guidance of the aggregate, and the label's code. The image is what the head says that is
      given the label, as in samples; `chances` are of the state alone. */
  look(z, t, label = null, guidance = 1) {
    const alone = this.predict(z, t), said = label === null ? alone : this.predict(z, t, label);
    const aggregate = said.aggregate.map((m, i) => alone.aggregate[i] + guidance * (m - alone.aggregate[i]));
    const known = alone.chances.map((_, k) => Number(k === label));
    const codes = { label: this.code(label === null ? alone.chances : known) };
    return { aggregate, image: said.image, chances: alone.chances, codes };
  }
}

/** Standard normal noise of a seed, size -> numbers: Marsaglia's xorshift (2003), then Box and Muller. */
function normals(seed) {
  let state = Math.imul(seed + 1, 0x9e3779b1) | 1;
  const uniform = () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return ((state >>> 0) + 0.5) / 2 ** 32;
  };
  const normal = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  return (size) => Float64Array.from({ length: size }, normal);
}
