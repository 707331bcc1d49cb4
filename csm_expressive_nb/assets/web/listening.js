'use strict';
// The listening test in a page that works from the disk; `listening_page` fills in the data.

const D = JSON.parse(document.getElementById('data').textContent);     // plan, hash, columns, sounds
const $ = id => document.getElementById(id);
const player = new Audio();
const n = D.plan.trials.length;
const TRIAL_ID = 2;                                                    // its column in a row of answers
let rater = '';
let rows = [];
let trial = null;
let heard = [];                                                        // plays of each clip of the trial
let since = 0;

const note = text => { $('note').textContent = text; };

// ---- the order of the trials, as `order_trials` has it

const fnv = text => new TextEncoder().encode(text).reduce((h, c) => Math.imul(h ^ c, 16777619) >>> 0, 2166136261);
const rank = t => D.plan.kinds.findIndex(k => k.kind === t.kind);
const turns = who => [...D.plan.trials].sort((x, y) => rank(x) - rank(y) || fnv(x.id + who) - fnv(y.id + who));

// ---- answers in the browser's storage

const slot = () => `csm listening ${D.hash} ${rater}`;

// what the browser kept (another tab may have added to it) and what only this page knows, where the browser
// keeps nothing
const load = () => {
  let kept = [];
  try {
    kept = JSON.parse(localStorage.getItem(slot())) || [];
  } catch { }
  const has = new Set(kept.map(row => row[TRIAL_ID]));
  return [...kept, ...rows.filter(row => !has.has(row[TRIAL_ID]))];
};

const keep = () => {
  try {
    localStorage.setItem(slot(), JSON.stringify(rows));
  } catch {
    note('This browser keeps nothing: download the answers before you close the page.');
  }
};

const quoted = value => /[",\r\n]/.test(value) ? '"' + String(value).replaceAll('"', '""') + '"' : value;
const csv = () => [D.columns, ...rows].map(row => row.map(quoted).join(',')).join('\n') + '\n';

// ---- one trial

const button = (text, act) => {
  const b = document.createElement('button');
  b.textContent = text;
  b.onclick = act;
  return b;
};

function ask() {
  const done = new Set(rows.map(row => row[TRIAL_ID]));
  trial = turns(rater).find(t => !done.has(t.id)) || null;
  player.pause();
  ['play', 'choose'].forEach(id => $(id).replaceChildren());
  $('progress').textContent = trial
    ? `${done.size + 1} of ${n}`
    : `All ${n} answered. Thank you. Now download the answers and send the file back.`;
  $('ask').textContent = trial ? D.plan.kinds[rank(trial)].ask : '';
  $('text').textContent = trial ? trial.text : '';
  if (!trial) {
    $('save').focus();
    return;
  }
  show(trial);
}

function show(t) {
  const names = t.clips.length > 1 ? ['A', 'B'] : ['Play'];
  heard = t.clips.map(() => 0);
  since = performance.now();
  names.forEach((name, i) => $('play').append(button('\u25b6 ' + name, () => sound(t, i))));
  D.plan.kinds[rank(t)].options.forEach(([value, label], i) => {
    const b = button(`${i + 1}  ${label}`, () => answer(t, value));
    b.disabled = true;
    $('choose').append(b);
  });
  $('play').firstChild.focus();
}

function sound(t, i) {
  player.src = 'data:audio/flac;base64,' + D.sounds[t.clips[i]];
  return player.play().then(() => {
    if (t !== trial) return;
    note('');
    heard[i]++;
    if (!heard.every(plays => plays)) return;
    for (const b of $('choose').children) b.disabled = false;
  }, error => {
    if (error.name === 'AbortError') return;
    note(`This browser cannot play the sound (${error.name}): try a current Firefox, Chrome, Edge or Safari.`);
  });
}

function answer(t, value) {
  if (t !== trial || !heard.every(plays => plays)) return;
  note('');
  rows = load();
  if (!rows.some(row => row[TRIAL_ID] === t.id)) {
    const seconds = ((performance.now() - since) / 1000).toFixed(2);
    const plays = String(heard.reduce((x, y) => x + y));
    const clips = [t.clips[0], t.clips[1] || ''];
    rows.push([D.hash, rater, t.id, t.kind, ...clips, value, seconds, plays, new Date().toISOString()]);
  }
  keep();
  ask();
}

// ---- the page

$('start').onsubmit = event => {
  event.preventDefault();
  const name = $('rater').value.trim();
  if (!/^[A-Za-z0-9_][A-Za-z0-9_ .-]{0,63}$/.test(name)) {
    note('Use 1 to 64 letters (A to Z), digits, spaces, _ . or -');
    return;
  }
  note('');
  rater = name;
  rows = [];
  rows = load();
  $('start').hidden = true;
  $('save').hidden = false;
  ask();
};

$('save').onclick = () => {
  const a = document.createElement('a');
  const url = URL.createObjectURL(new Blob([csv()], {type: 'text/csv'}));
  a.href = url;
  a.download = `answers-${D.hash.slice(0, 8)}-${rater.replaceAll(' ', '_')}.csv`;
  a.click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
};

function buttonOf(key) {
  if (/^[1-9]$/.test(key)) return $('choose').children[key - 1];
  return 'ab'.includes(key) ? $('play').children['ab'.indexOf(key)] : null;
}

document.onkeydown = event => {
  if (!trial || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const b = buttonOf(event.key.toLowerCase());
  if (b && !b.disabled) b.click();
};
