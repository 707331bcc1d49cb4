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
  const title = `${clip.run}: ${clip.system} ${clip.emotion}, voice ${clip.voice}`;
  const button = element('button', `\u25b6 ${clip.seconds.toFixed(1)} s`, {className: 'play', title});
  button.dataset.sound = clip.sound;
  return button;
}

// The table: a heading sorts, a second press turns the order. What was not measured stays at the end.

const tableBody = document.querySelector('table.sort tbody');
const headings = [...document.querySelectorAll('table.sort th')];

function compareValues(a, b) {
  const numbers = [Number(a), Number(b)];
  return numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1];
}

function sortBy(column) {
  const heading = headings[column];
  const ascending = heading.getAttribute('aria-sort') === 'descending';
  const sign = ascending ? 1 : -1;
  const value = row => row.children[column].dataset.v;
  const rows = [...tableBody.rows];
  const measured = rows.filter(row => value(row) !== undefined);
  const missing = rows.filter(row => value(row) === undefined);
  measured.sort((a, b) => sign * compareValues(value(a), value(b)));
  tableBody.append(...measured, ...missing);
  headings.forEach(other => other.removeAttribute('aria-sort'));
  heading.setAttribute('aria-sort', ascending ? 'ascending' : 'descending');
}

headings.forEach((heading, column) => {
  heading.querySelector('button').onclick = () => sortBy(column);
});

byId('filter').oninput = event => {
  const words = event.target.value.toLowerCase();
  for (const row of tableBody.rows) {
    const names = [...row.children].slice(0, 3).map(cell => cell.textContent.toLowerCase());
    row.hidden = !names.some(name => name.includes(words));
  }
};

// Listening: a row per sentence, voice and seed; a column for the base, each run and emotion, and recordings.

const ROWS_PER_STEP = 50;
let rowLimit = ROWS_PER_STEP;

function columnOf(clip) {
  if (clip.system === 'base' || clip.system === 'recordings') return clip.system;
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

// the base first, recordings last
function orderColumns(a, b) {
  return (b === 'base') - (a === 'base') || (a === 'recordings') - (b === 'recordings');
}

function sentenceRow(key, clips, columns) {
  const [text, voice] = JSON.parse(key);
  const row = element('tr');
  row.append(element('td', text, {className: 'text'}), element('td', voice));
  for (const column of columns) {
    const cell = element('td');
    const inColumn = clips.filter(clip => columnOf(clip) === column);
    for (const sound of unique(inColumn.map(clip => clip.sound))) {
      cell.append(playButton(inColumn.find(clip => clip.sound === sound)));
    }
    row.append(cell);
  }
  return row;
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

  function cell(clip) {
    const td = element('td');
    td.append(clip ? playButton(clip) : element('span', 'not spoken', {className: 'none'}));
    return td;
  }

  function draw() {
    const sentence = byId('sentence').value;
    const rows = unique(clips.map(columnOf)).map(name => {
      const row = element('tr');
      const at = scale => clips.find(
        clip => columnOf(clip) === name && clip.scale === scale && keyOf(clip) === sentence);
      row.append(element('th', name), ...scales.map(scale => cell(at(scale))));
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

const drawn = new Set();

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();
}

function drawChart(id) {
  const figure = data.charts[id][byId('plot-' + id).dataset.name];
  const axis = {gridcolor: colour('line'), zerolinecolor: colour('soft'), linecolor: colour('soft')};
  const layout = {
    ...figure.layout,
    paper_bgcolor: 'rgba(0,0,0,0)',
    plot_bgcolor: 'rgba(0,0,0,0)',
    font: {color: colour('text'), family: 'system-ui, sans-serif', size: 13},
    margin: {l: 70, r: 20, t: 20, b: 60},
    showlegend: true,
    legend: {orientation: 'h', y: 1.12},
    xaxis: {...figure.layout.xaxis, ...axis},
    yaxis: {...figure.layout.yaxis, ...axis},
  };
  Plotly.react('plot-' + id, figure.data, layout, {responsive: true, displaylogo: false});
}

function drawOnce(id) {
  if (drawn.has(id)) return;
  drawn.add(id);
  drawChart(id);
}

const sight = new IntersectionObserver(entries => {
  for (const entry of entries) {
    if (entry.isIntersecting) drawOnce(entry.target.id.slice('plot-'.length));
  }
}, {rootMargin: '300px'});

for (const select of document.querySelectorAll('select[data-chart]')) {
  const id = select.dataset.chart;
  const plot = byId('plot-' + id);
  const names = Object.keys(data.charts[id] || {});
  if (!names.length) {
    plot.textContent = 'Nothing to draw: no run has it.';
    select.parentNode.hidden = true;
    continue;
  }
  fillSelect(select, names);
  plot.dataset.name = names[0];
  select.oninput = () => {
    plot.dataset.name = select.value;
    drawChart(id);
  };
  sight.observe(plot);
}

matchMedia('(prefers-color-scheme: dark)').onchange = () => drawn.forEach(drawChart);

onbeforeprint = () => {
  for (const [id, figures] of Object.entries(data.charts)) {
    if (byId('plot-' + id) && Object.keys(figures).length) drawOnce(id);
  }
};
