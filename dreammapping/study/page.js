"use strict";
// One screen for each question of each trial. Texts reach the page as text nodes alone, never as markup.
const study = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
let participant = "", screens = [], answers = [], chosen = [], cards = [], since = 0;

// FNV-1a of a text, then mulberry32: the same order on every device for the same seed and participant.
function random(text) {
  let state = 2166136261;
  for (const byte of new TextEncoder().encode(text)) state = Math.imul(state ^ byte, 16777619);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

function shuffled(list, draw) {
  const order = [...list];
  for (let last = order.length - 1; last > 0; last--) {
    const other = Math.floor(draw() * (last + 1));
    [order[last], order[other]] = [order[other], order[last]];
  }
  return order;
}

function show(name) {
  for (const each of ["start", "trial", "end"]) $(each).hidden = each !== name;
}

function stored(change) {
  const place = `study ${study.id} ${participant}`;
  try {  // a browser may keep nothing, and then the answers live as long as the page
    if (change) localStorage.setItem(place, JSON.stringify(answers));
    return JSON.parse(localStorage.getItem(place)) || [];
  } catch {
    return [];
  }
}

function begin() {
  participant = $("participant").value.trim();
  $("participant").blur();  // hidden, it has the keys until the page is next drawn, and Enter would begin again
  const draw = random(`${study.seed}|${participant}`);
  screens = shuffled(study.trials, draw).flatMap((trial) => {
    const items = shuffled(trial.items, draw);
    return study.questions.map((question) => ({ trial, items, question }));
  });
  answers = stored(false).slice(0, screens.length);
  proceed();
}

function proceed() {
  if (answers.length >= screens.length) return finish();
  const { trial, items, question } = screens[answers.length];
  $("progress").textContent = `${answers.length + 1} of ${screens.length}`;
  $("question").textContent = question.text;
  $("prompt").textContent = `“${trial.prompt}”`;
  cards = items.map((item, index) => card(item, index));
  $("cards").replaceChildren(...cards.map((each) => each.button));
  chosen = [];
  since = performance.now();
  mark();
  show("trial");
}

function card(item, index) {
  const button = document.createElement("button"), image = document.createElement("img");
  const key = document.createElement("span"), rank = document.createElement("span");
  key.className = "key";
  key.textContent = index + 1;
  rank.className = "rank";
  image.src = item.image;
  image.alt = `Picture ${index + 1}`;
  button.append(key, image, rank);
  button.addEventListener("click", () => choose(item.id));
  return { id: item.id, button, rank };
}

// A choice comes next in order; one that is chosen already goes, and those after it. The last one left needs no choice.
function choose(id) {
  const place = chosen.indexOf(id);
  if (place >= 0) {
    chosen = chosen.slice(0, place);
  } else {
    chosen.push(id);
    const left = cards.filter((each) => !chosen.includes(each.id));
    if (left.length === 1) chosen.push(left[0].id);
  }
  mark();
}

function takeBack() {
  chosen = chosen.slice(0, chosen.length === cards.length ? -2 : -1);
  mark();
}

function mark() {
  for (const each of cards) {
    const place = chosen.indexOf(each.id);
    each.rank.hidden = place < 0;
    each.rank.textContent = place < 0 ? "" : place + 1;
    each.button.setAttribute("aria-pressed", place >= 0);
  }
  $("next").disabled = chosen.length < cards.length;
}

function next() {
  const { trial, items, question } = screens[answers.length];
  answers.push({
    trial: trial.id,
    question: question.id,
    shown: items.map((item) => item.id),
    order: chosen,
    seconds: Math.round((performance.now() - since) / 100) / 10,
  });
  stored(true);
  window.scrollTo(0, 0);
  proceed();
}

function finish() {
  const whole = answers.length >= screens.length;
  $("state").textContent = `${answers.length} of ${screens.length} answers are given. Save them, and send the file back.`;
  $("back").hidden = whole;
  $("text").value = file();
  show("end");
}

function file() {
  return JSON.stringify({ study: study.id, participant, answers }, null, 1);
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([file()], { type: "application/json" }));
  link.download = `answers_${participant.replace(/[^A-Za-z0-9_-]+/g, "_")}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
}

function pressed(event) {
  if ($("trial").hidden || event.ctrlKey || event.altKey || event.metaKey) return;
  const index = "123456789".indexOf(event.key);
  if (event.key.length === 1 && index >= 0 && index < cards.length) choose(cards[index].id);
  else if (event.key === "Backspace") takeBack();
  else if (event.key === "Enter" && !$("next").disabled && document.activeElement !== $("stop")) next();
  else return;
  event.preventDefault();
}

$("participant").addEventListener("input", () => { $("begin").disabled = !$("participant").value.trim(); });
$("participant").addEventListener("keydown", (event) => { if (event.key === "Enter" && !$("begin").disabled) { event.preventDefault(); begin(); } });
$("begin").addEventListener("click", begin);
$("next").addEventListener("click", next);
$("stop").addEventListener("click", finish);
$("back").addEventListener("click", proceed);
$("save").addEventListener("click", save);
document.addEventListener("keydown", pressed);
