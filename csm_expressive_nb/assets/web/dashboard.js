'use strict';

const byId = id => document.getElementById(id);
const data = JSON.parse(byId('data').textContent);     // {mime, clips, charts}
const unique = values => [...new Set(values)];

function element(tag, text, properties = {}) {
  return Object.assign(document.createElement(tag), {textContent: text ?? ''}, properties);
}

function fillSelect(select, values, names = values) {
  select.replaceChildren(...values.map((value, i) => element('option', names[i], {value})));
}

// Players: one Audio for the page. A sound is decoded when its button is pressed, and forgotten with the next.

const player = new Audio();
let current = null;                                    // the button whose sound is loaded
let url = '';

function notify(text) {
  byId('note').textContent = text;
}

function soundBytes(id) {
  return Uint8Array.from(atob(byId('s' + id).textContent), character => character.charCodeAt(0));
}

function loadSound(button) {
  if (current) current.style.removeProperty('--done');
  if (url) URL.revokeObjectURL(url);
  url = URL.createObjectURL(new Blob([soundBytes(button.dataset.sound)], {type: data.mime}));
  player.src = url;
  current = button;
}

function press(button) {
  if (current === button && !player.paused) {
    player.pause();
    return;
  }
  if (current !== button || !url) loadSound(button);
  const failed = error => {
    if (error.name !== 'AbortError') notify(`This browser cannot play the sound (${error.name}).`);
  };
  player.play().then(() => notify(''), failed);
}

function showStopped() {
  document.querySelectorAll('.play.on').forEach(button => button.classList.remove('on'));
}

player.onplay = () => current.classList.add('on');
player.onpause = showStopped;
player.onended = showStopped;
player.ontimeupdate = () => {
  if (!current || !player.duration) return;
  current.style.setProperty('--done', `${100 * player.currentTime / player.duration}%`);
};

document.addEventListener('click', event => {
  const button = event.target.closest('.play');
  if (!button) return;
  if (button !== current) player.pause();
  press(button);
});

function playButton(clip) {
  const title = `${clip.run}: ${clip.system} ${clip.emotion || ''}, voice ${clip.voice}`;
  const button = element('button', `\u25b6 ${clip.seconds.toFixed(1)} s`, {className: 'play', title});
  button.dataset.sound = clip.sound;
  return button;
}

// The table: a heading sorts, a second press turns the order. What was not measured stays at the end.

const table = document.querySelector('table.sort');
const tableBody = table.tBodies[0];
const sortButtons = [...table.querySelectorAll('[data-sort]')];

function compareValues(a, b) {
  const numbers = [Number(a), Number(b)];
  return numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1];
}

function sortBy(column, ascending) {
  const value = row => row.querySelector(`[data-column="${column}"]`).dataset.v;
  const rows = [...tableBody.rows];
  const measured = rows.filter(row => value(row) !== undefined);
  const missing = rows.filter(row => value(row) === undefined);
  measured.sort((a, b) => (ascending ? 1 : -1) * compareValues(value(a), value(b)));
  tableBody.append(...measured, ...missing);
  for (const button of sortButtons) {
    const heading = button.parentElement;
    heading.removeAttribute('aria-sort');
    if (button.dataset.sort === column) heading.setAttribute('aria-sort', ascending ? 'ascending' : 'descending');
  }
}

for (const button of sortButtons) {
  button.onclick = () => {
    sortBy(button.dataset.sort, button.parentElement.getAttribute('aria-sort') === 'descending');
  };
}

fillSelect(byId('sort-by'), sortButtons.map(button => button.dataset.sort), sortButtons.map(button => button.textContent));
byId('sort-by').oninput = event => sortBy(event.target.value, event.target.value === 'run');

byId('filter').oninput = event => {
  const words = event.target.value.toLowerCase();
  for (const row of tableBody.rows) {
    row.hidden = !row.cells[0].textContent.toLowerCase().includes(words);
  }
};

// Columns that are picked, and the base's values in table and charts

function showColumn(name, isShown) {
  table.querySelectorAll(`[data-column="${name}"]`).forEach(cell => { cell.hidden = !isShown; });
}

function fitGroups() {
  for (const heading of table.querySelectorAll('[data-group]')) {
    const columns = [...table.querySelectorAll('thead [data-of]')];
    const shown = columns.filter(column => column.dataset.of === heading.dataset.group && !column.hidden);
    heading.colSpan = Math.max(1, shown.length);
    heading.hidden = !shown.length;
  }
}

for (const box of document.querySelectorAll('.picker input')) {
  box.oninput = () => {
    showColumn(box.dataset.column, box.checked);
    fitGroups();
  };
}
fitGroups();

byId('bases').oninput = () => {
  document.body.classList.toggle('no-bases', !byId('bases').checked);
  redraw();
};

// Listening: a row per sentence, voice and seed; a column for the base, each run and emotion, and reference clips.

const ROWS_PER_STEP = 50;
let rowLimit = ROWS_PER_STEP;

function columnOf(clip) {
  if (clip.system === 'base') return clip.system;
  if (clip.system === 'recordings') return 'reference clips';
  return clip.run === clip.emotion ? clip.run : `${clip.run}: ${clip.emotion}`;
}

function selectedClips() {
  const origin = byId('origin').value;
  const emotion = byId('emotion').value;
  const words = byId('find').value.toLowerCase();
  return data.clips.filter(clip => {
    const fits = !emotion || !clip.emotion || clip.emotion === emotion || clip.system === 'base';
    const asTrained = clip.scale === null || clip.scale === 1;
    return clip.origin === origin && fits && asTrained && clip.text.toLowerCase().includes(words);
  });
}

function groupBySentence(clips) {
  const groups = new Map();
  for (const clip of clips) {
    const key = JSON.stringify([clip.text, clip.voice, clip.seed]);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(clip);
  }
  return groups;
}

// the base first, reference clips last
function orderColumns(a, b) {
  return (b === 'base') - (a === 'base') || (a === 'reference clips') - (b === 'reference clips');
}

function sentenceRow(key, clips, columns) {
  const [text, voice] = JSON.parse(key);
  const row = element('tr');
  row.append(element('td', text, {className: 'text'}), labelled(element('td', voice), 'voice'));
  for (const column of columns) {
    const cell = labelled(element('td'), column);
    const inColumn = clips.filter(clip => columnOf(clip) === column);
    for (const sound of unique(inColumn.map(clip => clip.sound))) {
      cell.append(playButton(inColumn.find(clip => clip.sound === sound)));
    }
    row.append(cell);
  }
  return row;
}

// what a phone writes beside the value
function labelled(cell, label) {
  cell.dataset.label = label;
  return cell;
}

function headingRow(names) {
  const row = element('tr');
  row.append(...names.map(name => element('th', name)));
  return row;
}

function listen() {
  const clips = selectedClips();
  const groups = groupBySentence(clips);
  const columns = unique(clips.map(columnOf)).sort(orderColumns);
  const visible = [...groups].slice(0, rowLimit);
  byId('heads').replaceChildren(headingRow(['sentence', 'voice', ...columns]));
  byId('clips').replaceChildren(...visible.map(([key, members]) => sentenceRow(key, members, columns)));
  byId('count').textContent = `${visible.length} of ${groups.size} rows, ${clips.length} clips`;
  byId('more').hidden = rowLimit >= groups.size;
}

const emotions = unique(data.clips.map(clip => clip.emotion)).filter(Boolean);
fillSelect(byId('origin'), unique(data.clips.map(clip => clip.origin)));
fillSelect(byId('emotion'), ['', ...emotions], ['all', ...emotions]);
for (const id of ['origin', 'emotion', 'find']) {
  byId(id).oninput = () => {
    rowLimit = ROWS_PER_STEP;
    listen();
  };
}
byId('more').onclick = () => {
  rowLimit += ROWS_PER_STEP;
  listen();
};
listen();

// Emotion and intensity: one sentence, a row per run and emotion, a column per scale of the adapter.

function intensityTable() {
  const clips = data.clips.filter(clip => clip.origin === 'intensity' && clip.scale !== null);
  const keyOf = clip => JSON.stringify([clip.text, clip.voice]);
  const sentences = unique(clips.map(keyOf));
  const scales = unique(clips.map(clip => clip.scale)).sort((a, b) => a - b);

  function cell(clip, scale) {
    const td = labelled(element('td'), `scale ${scale}`);
    td.append(clip ? playButton(clip) : element('span', 'not spoken', {className: 'none'}));
    return td;
  }

  function draw() {
    const sentence = byId('sentence').value;
    const rows = unique(clips.map(columnOf)).map(name => {
      const row = element('tr');
      const at = scale => clips.find(
        clip => columnOf(clip) === name && clip.scale === scale && keyOf(clip) === sentence);
      row.append(element('td', name, {className: 'text'}), ...scales.map(scale => cell(at(scale), scale)));
      return row;
    });
    byId('scales').replaceChildren(headingRow(['', ...scales]));
    byId('dials').replaceChildren(...rows);
  }

  const names = sentences.map(key => {
    const [text, voice] = JSON.parse(key);
    return `${text} (voice ${voice})`;
  });
  fillSelect(byId('sentence'), sentences, names);
  byId('sentence').oninput = draw;
  draw();
}

if (byId('dial')) intensityTable();

// Charts: drawn when they come into sight, in the colours of the page.

const INK = '#1b1b1b';                                 // what figures call the colour of text
const drawn = new Map();                               // what is drawn, by the element it is in

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();
}

function runningMean(values, n) {
  let sum = 0;
  return values.map((value, i) => {
    sum += value - (i >= n ? values[i - n] : 0);
    return sum / Math.min(i + 1, n);
  });
}

function smooth(trace) {
  const n = Number(byId('smoothing').value);
  if (trace.meta !== 'smooth' || n < 2) return trace;
  if (trace.z) return {...trace, z: trace.z.map(row => runningMean(row, n))};
  return {...trace, y: runningMean(trace.y, n)};
}

function drawChart(plot, figure) {
  const inked = JSON.parse(JSON.stringify(figure).replaceAll(INK, colour('text')));
  const axis = {gridcolor: colour('line'), zerolinecolor: colour('soft'), linecolor: colour('soft'), automargin: true};
  const hasNames = (inked.layout.annotations || []).length > 0;
  const layout = {
    ...inked.layout,
    paper_bgcolor: 'rgba(0,0,0,0)',
    plot_bgcolor: 'rgba(0,0,0,0)',
    font: {color: colour('text'), family: 'system-ui, sans-serif', size: 13},
    margin: {l: 60, r: hasNames ? 90 : 20, t: 20, b: 50},
    legend: {orientation: 'h', y: 1.18},
    xaxis: {...inked.layout.xaxis, ...axis},
    yaxis: {...inked.layout.yaxis, ...axis},
  };
  const isShown = trace => byId('bases').checked || trace.meta !== 'base';
  const config = {responsive: true, displaylogo: false, displayModeBar: plot.id === 'plot-training'};
  plot.style.height = `${layout.height || 380}px`;
  Plotly.react(plot, inked.data.filter(isShown).map(smooth), layout, config);
  drawn.set(plot, figure);
}

function redraw() {
  drawn.forEach((figure, plot) => drawChart(plot, figure));
}

const sight = new IntersectionObserver(entries => {
  for (const entry of entries) {
    if (entry.isIntersecting && !drawn.has(entry.target)) drawChart(entry.target, entry.target.figure);
  }
}, {rootMargin: '300px'});

for (const place of document.querySelectorAll('.multiples')) {
  const figures = Object.entries(data.charts[place.dataset.charts] || {});
  if (!figures.length) place.textContent = 'Nothing to draw: no run has it.';
  figures.forEach(([name, figure], i) => {
    const block = element('div');
    const plot = element('div', '', {className: 'chart', id: `plot-${place.dataset.charts}-${i}`, figure});
    plot.setAttribute('role', 'img');
    plot.setAttribute('aria-label', name);
    plot.style.height = `${figure.layout.height || 380}px`;
    block.append(element('h3', name), plot);
    place.append(block);
    sight.observe(plot);
  });
}

const curves = data.charts.training;
const training = byId('plot-training');

function showCurve() {
  training.figure = curves[byId('curve').value];
  drawChart(training, training.figure);
}

if (Object.keys(curves).length) {
  fillSelect(byId('curve'), Object.keys(curves));
  training.figure = curves[byId('curve').value];
  byId('curve').oninput = showCurve;
  byId('smoothing').oninput = () => {
    byId('smoothed').textContent = byId('smoothing').value;
    showCurve();
  };
  sight.observe(training);
} else {
  training.textContent = 'Nothing to draw: no run has a training log.';
}

matchMedia('(prefers-color-scheme: dark)').onchange = redraw;

onbeforeprint = () => {
  for (const plot of document.querySelectorAll('.chart')) {
    if (plot.figure && !drawn.has(plot)) drawChart(plot, plot.figure);
  }
};
