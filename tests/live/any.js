"use strict";
/* Any to any: MTDiffusion.forward of a model whose aggregate is what its heads say, of pictures, maps of classes, labels and
   captions that share one space (theory 6). Each kind of modality has `encode` (value -> code on the whole space), `told`
   (value -> how the network is given it), and `head` (what the network puts out -> what it says, and the expected code).
   A value is a list of numbers: of pixels, or of ids. */

/** Softmax at each of some places: chances[place * words + word]. */
function softmaxes(a, words) {
  const out = new Float64Array(a.length);
  for (let from = 0; from < a.length; from += words) out.set(softmax(a.subarray(from, from + words)), from);
  return out;
}

/** Real numbers at each pixel, in channels of their own: an image, a depth. */
class Picture {
  constructor(layer, { channels }, [, height, width], size) {
    Object.assign(this, { layer, size, span: channels, area: height * width });
  }

  encode(value) {
    const code = new Float64Array(this.size);
    code.set(value, this.span[0] * this.area);
    return code;
  }

  told(value) {
    return { context: conv(Float64Array.from(value), this.layer.embed) };
  }

  /** The linear guess k_t z of what the others leave, and what is missing in units of the noise that is left. */
  head({ features, left, signal, noise }) {
    const power = signal ** 2 + noise ** 2, gain = signal / power, std = noise / Math.sqrt(power);
    const [from, to] = this.span.map((channel) => channel * this.area);
    const said = conv(features, this.layer.out).map((x, i) => gain * left.subarray(from, to)[i] + std * x);
    return { said, code: this.encode(said) };
  }
}

/** A class at each pixel, in all channels. What it says are chances[class * area + pixel]. */
class ClassMap {
  constructor(layer, { classes }, [channels, height, width], size) {
    Object.assign(this, { layer, classes, size, span: [0, channels], area: height * width });
  }

  oneHot(value) {
    const out = new Float64Array(this.classes * this.area);
    value.forEach((k, i) => (out[k * this.area + i] = 1));
    return out;
  }

  mix(chances) {
    const { data } = this.layer.codes, channels = this.span[1];
    return Float64Array.from({ length: this.size }, (_, i) => {
      let sum = 0;
      for (let k = 0; k < this.classes; k++) {
        sum += chances[k * this.area + (i % this.area)] * data[k * channels + Math.floor(i / this.area)];
      }
      return sum;
    });
  }

  encode(value) {
    return this.mix(this.oneHot(value));
  }

  told(value) {
    return { context: conv(this.oneHot(value), this.layer.embed) };
  }

  head({ features }) {
    const logits = conv(features, this.layer.out), said = new Float64Array(logits.length), at = (k, i) => k * this.area + i;
    for (let i = 0; i < this.area; i++) {
      softmax(Array.from({ length: this.classes }, (_, k) => logits[at(k, i)])).forEach((p, k) => (said[at(k, i)] = p));
    }
    return { said, code: this.mix(said) };
  }
}

/** A label, or a caption of some places: a code for each place and word, which fills all of the space and is sensed. */
class Words {
  constructor(layer, { classes, vocabulary, length = 1 }, [channels], size) {
    Object.assign(this, { layer, size, places: length, words: classes ?? vocabulary.length, span: [0, channels] });
  }

  mix(chances) {
    const { data } = this.layer.codes, code = new Float64Array(this.size);
    chances.forEach((p, row) => {
      for (let i = 0; i < this.size; i++) code[i] += p * data[row * this.size + i];
    });
    return code;
  }

  encode(value) {
    const chances = new Float64Array(this.places * this.words);
    value.forEach((word, place) => (chances[place * this.words + word] = 1));
    return this.mix(chances);
  }

  told(value) {
    const { shape: [, width], data } = this.layer.embed.weight, rows = value.map((word, place) => place * this.words + word);
    const sum = (i) => rows.reduce((total, row) => total + data[row * width + i], 0);
    return { condition: Float64Array.from({ length: width }, (_, i) => sum(i) / Math.sqrt(this.places)) };
  }

  /** The posterior of the words by their codes alone, where all else is noise: softmax of scale <z, c>. */
  sensed(z, scale) {
    const { data } = this.layer.codes;
    const logits = Float64Array.from({ length: this.places * this.words }, (_, row) => {
      return scale * z.reduce((sum, x, i) => sum + x * data[row * this.size + i], 0);
    });
    return softmaxes(logits, this.words);
  }

  head({ pooled }) {
    const { out } = this.layer, said = softmaxes(conv(silu(conv(pooled, out[0])), out[2]), this.words);
    return { said, code: this.mix(said) };
  }
}

/** A model of scenes; given is {name: value}. */
class Scenes extends Chain {
  constructor(model) {
    super(model);
    const { kind, prediction, prior, remove_known: removed, backbone, space, modalities } = this.config;
    const whole = kind === "MTDiffusion" && prediction === "heads" && removed && !prior && walks(backbone);
    const parts = Object.entries(modalities).map(([name, its]) => [name, Scenes.kind(its), its]);
    if (!whole || parts.some(([, kind]) => !kind)) {
      throw new Error("only a U-Net can be run here whose aggregate is what its heads say of pictures, maps and words");
    }
    const make = ([name, kind, its]) => [name, new kind(this.net.modalities[name], its, space, this.size)];
    this.modalities = Object.fromEntries(parts.map(make));
    this.area = space[1] * space[2];
    const last = ([, kind]) => Number(kind === Picture);
    this.order = [...parts].sort((a, b) => last(a) - last(b)).map(([name]) => name);
  }

  /** The class that runs a modality of a card's config, if there is one. */
  static kind({ kind, channels, start, head = true, tell, sense, codes, revealed_by: revealed = [] }) {
    if (kind === "Image") return channels && head && tell && start === "rest" && !revealed.length && Picture;
    if (kind === "LabelMap") return !channels && tell && ClassMap;
    return ["Label", "Caption"].includes(kind) && !channels && sense && codes === "simplex" && tell === "vector" && Words;
  }

  /** sum_i W_t^i e_i of some codes, added to a state times a factor. */
  plus(state, codes, t, factor = 1) {
    const out = Float64Array.from(state);
    for (const [name, code] of Object.entries(codes)) {
      const w = factor * this.W[name][t];
      for (let i = 0; i < out.length; i++) out[i] += w * code[i];
    }
    return out;
  }

  /** What the model says of z_t, in which some may be absent: take out what is known, look once, let the heads read, add up. */
  predict(z, t, given = {}, absent = []) {
    const all = Object.entries(this.modalities), none = new Float64Array(this.size);
    const signal = Math.sqrt(this.abar[t]), noise = Math.sqrt(1 - this.abar[t]);
    const gone = (name) => name in given || absent.includes(name);
    const level = (name) => (gone(name) ? 0 : signal * this.W[name][t]);
    const known = {}, found = {}, inputs = { condition: null, context: null };
    const tell = (slot, value) => (inputs[slot] = inputs[slot] ? add(inputs[slot], value) : value);
    for (const [name, value] of Object.entries(given)) {
      known[name] = this.modalities[name].encode(value);
      for (const put of Object.entries(this.modalities[name].told(value))) tell(...put);
    }
    for (const name of absent) tell("condition", Float64Array.from(this.net.absent[name].data));
    const rest = this.plus(z, known, t, -signal);

    for (const [name, modality] of all.filter(([name, part]) => part instanceof Words && !(name in given))) {
      const others = all.filter(([other]) => other !== name); // words fill the space: each other code is in their channels
      const power = others.reduce((sum, [other]) => sum + level(other) ** 2, noise ** 2);
      const chances = modality.sensed(rest, level(name) / power);
      tell("condition", conv(chances, modality.layer.notice));
      if (!gone(name)) found[name] = modality.mix(chances);
    }
    const power = new Float64Array(this.size).fill(noise ** 2);
    for (const [name, { span: [from, to] }] of all.filter(([, part]) => !(part instanceof Words))) {
      for (let i = from * this.area; i < to * this.area; i++) power[i] += level(name) ** 2;
    }
    const seen = this.plus(rest, found, t, -signal).map((x, i) => x / Math.sqrt(power[i]));
    const { condition, context } = inputs, { cells = 1 } = this.config.backbone;
    const [features, pooled] = unet(this.net.backbone, seen, t / this.T, condition, context, cells);

    const said = {}, open = {}, read = {};
    for (const name of this.order) {
      const left = this.plus(rest, open, t, -signal), at = { signal: signal * this.W[name][t], noise };
      const { said: law, code } = this.modalities[name].head({ features, pooled, left, ...at });
      [said[name], read[name]] = [law, code];
      if (!gone(name)) open[name] = code;
    }
    return { said, known, codes: { ...read, ...known }, aggregate: this.plus(none, { ...open, ...known }, t) };
  }

  /** The same with classifier-free guidance of the codes; `said` is what the heads say that are given the values.
   * What is known is taken out of z_t for both estimates: the other has not heard it. */
  look(z, t, given = {}, guidance = 1) {
    const told = this.predict(z, t, given);
    if (guidance === 1 || !Object.keys(given).length) return told;
    const without = this.predict(this.plus(z, told.known, t, -Math.sqrt(this.abar[t])), t, {}, Object.keys(given)), codes = {};
    for (const [name, code] of Object.entries(told.codes)) {
      const guided = (x, i) => without.codes[name][i] + guidance * (x - without.codes[name][i]);
      codes[name] = name in given ? code : code.map(guided);
    }
    return { said: told.said, codes, aggregate: this.plus(new Float64Array(this.size), codes, t) };
  }
}
