const all = (what, where = document) => [...where.querySelectorAll(what)]
const plain = text => text.normalize('NFC').toLowerCase().trim()
const box = document.querySelector('[type=search]'), heads = all('thead th'), bodies = all('tbody'), table = document.querySelector('table')
const watch = document.getElementById('watch'), unfold = document.getElementById('unfold')
const texts = bodies.map(body => plain(body.textContent.replaceAll('\n', ' ')))
const jobsOf = body => body.dataset.jobs.split(' ').map(Number)
const state = { q: '', sort: '', open: new Set(), still: false }

// Sorting: whole rows with the jobs in them; what has no value stays last, whichever way.
const value = (body, column) => body.rows[0].cells[column].dataset.v
const compare = (one, other) => one !== '' && other !== '' && !isNaN(one) && !isNaN(other) ? one - other : one.localeCompare(other, undefined, { numeric: true })
const sort = () => {
  const [column, way] = state.sort ? state.sort.split('.').map(Number) : [-1, 1]
  heads.forEach((head, at) => head.setAttribute('aria-sort', at !== column ? 'none' : way > 0 ? 'ascending' : 'descending'))
  const order = column < 0 || column >= heads.length ? bodies : [...bodies].sort((one, other) => {
    const a = value(one, column), b = value(other, column)
    return (a === '') - (b === '') || way * compare(a, b)
  })
  table.append(...order)
}
const fold = (body, open) => {
  const button = body.querySelector('.fold')
  if (!button) return
  button.setAttribute('aria-expanded', open)
  all('tr.part', body).forEach(row => { row.hidden = !open })
  state.open[open ? 'add' : 'delete'](body.dataset.jobs.split(' ')[0])
}
let shownJobs = new Set()
const filter = () => {
  const words = plain(state.q).split(/\s+/)
  bodies.forEach((body, at) => { body.hidden = !words.every(word => texts[at].includes(word)) })
  const shown = bodies.filter(body => !body.hidden)
  shownJobs = new Set(shown.flatMap(jobsOf))
  document.querySelector('output').textContent = shown.length + ' of ' + bodies.length + ' rows'
  document.querySelector('.none').hidden = shown.length > 0
  all('.card[data-jobs]').forEach(card => { card.hidden = !jobsOf(card).some(job => shownJobs.has(job)) })
  charts.forEach(show)
}

// The view is in the address, so that a link or a reload keeps it: #q=lora&sort=3.-1&open=0,4
const keep = () => {
  const parts = [state.q && 'q=' + encodeURIComponent(state.q), state.sort && 'sort=' + state.sort,
    state.open.size && 'open=' + [...state.open].join(), state.still && 'still=1'].filter(Boolean)
  history.replaceState(null, '', location.href.split('#')[0] + (parts.length ? '#' + parts.join('&') : ''))
}
const read = () => {
  const asked = new URLSearchParams(location.hash.slice(1).replaceAll('+', '%2B')), open = (asked.get('open') || '').split(',')
  state.q = box.value = asked.get('q') || ''
  state.sort = /^\d+\.-?1$/.test(asked.get('sort')) ? asked.get('sort') : ''
  state.still = asked.get('still') === '1'
  if (watch) watch.checked = !state.still
  bodies.forEach(body => fold(body, open.includes(body.dataset.jobs.split(' ')[0])))
  sort()
  filter()
}

// The charts, in the reader's colours.
const style = getComputedStyle(document.body)
const colour = name => { document.body.style.outlineColor = 'var(--' + name + ')'; return style.outlineColor }
const narrow = () => innerWidth < 640
const layoutOf = chart => {
  const ink = colour('ink'), grid = colour('grid'), card = colour('card'), muted = colour('muted')
  const axis = given => ({ gridcolor: grid, linecolor: grid, zeroline: false, automargin: true, tickfont: { color: muted, size: 12 }, ...given,
    ...(given.title && { title: { ...given.title, font: { color: muted, size: 12 } } }) })
  const { annotations = [], xaxis, yaxis, ...rest } = chart.layout
  return {
    paper_bgcolor: card, plot_bgcolor: card, font: { color: ink, family: style.fontFamily, size: 13 }, showlegend: false, hovermode: 'closest',
    margin: { l: 16, r: 16, t: 16, b: 16 }, dragmode: matchMedia('(pointer: coarse)').matches ? false : 'zoom',
    hoverlabel: { bgcolor: ink, bordercolor: ink, font: { color: card }, align: 'left' },
    ...rest, xaxis: axis(xaxis), yaxis: axis(yaxis),
    annotations: annotations.map(one => ({ ...one, bgcolor: card, opacity: 0.85, font: { ...one.font, color: muted } })),
  }
}
const specs = document.getElementById('charts')
const charts = specs && window.Plotly ? JSON.parse(specs.textContent) : []
const show = chart => {
  const several = chart.data.length > 1 || chart.data[0].type !== 'scatter' || chart.data[0].mode !== 'markers'
  if (!chart.drawn || !chart.jobs.length) return
  if (several) Plotly.restyle(chart.place, { visible: chart.jobs.map(job => shownJobs.has(job)) })
  else Plotly.restyle(chart.place, { 'marker.opacity': [chart.jobs.map(job => shownJobs.has(job) ? 0.85 : 0.06)] })
}
const light = jobs => all('tbody tr').forEach(row => row.classList.toggle('lit', jobs.includes(row.dataset.job) && (!row.classList.contains('part') || !row.hidden)))
const draw = async chart => {
  chart.place = document.getElementById(chart.id)
  const wide = chart.layout.xaxis.ticktext && chart.id === 'parallel' ? chart.layout.xaxis.ticktext.length * 110 : 0
  if (wide) chart.place.style.minWidth = wide + 'px'
  await Plotly.newPlot(chart.place, chart.data, layoutOf(chart), { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false })
  chart.drawn = true
  chart.place.on('plotly_hover', event => {
    const point = event.points[0], several = chart.data.length > 1
    const job = chart.jobs[several ? point.curveNumber : chart.data[0].mode === 'markers' ? point.pointNumber : 0]
    light(bodies.filter(body => jobsOf(body).includes(job)).map(body => body.rows[0].dataset.job).concat(String(job)))
  })
  chart.place.on('plotly_unhover', () => light([]))
}

box.addEventListener('input', () => { state.q = box.value; filter(); keep() })
heads.forEach((head, at) => head.querySelector('button').addEventListener('click', () => {
  const first = head.dataset.first === 'down' ? -1 : 1, [column, way] = state.sort.split('.').map(Number)
  state.sort = !state.sort || column !== at ? at + '.' + first : way === first ? at + '.' + -first : ''
  sort()
  keep()
}))
bodies.forEach(body => body.querySelector('.fold')?.addEventListener('click', event => {
  fold(body, event.currentTarget.getAttribute('aria-expanded') !== 'true')
  keep()
}))
unfold?.addEventListener('click', () => {
  const open = bodies.some(body => body.querySelector('.fold[aria-expanded=false]'))
  bodies.forEach(body => fold(body, open))
  keep()
})
watch?.addEventListener('change', () => { state.still = !watch.checked; keep() })
addEventListener('hashchange', read)
addEventListener('keydown', event => { if (event.key === '/' && document.activeElement !== box) { event.preventDefault(); box.focus() } })
if (watch) setInterval(() => { if (!state.still && !document.hidden) location.reload() }, 30000)
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => charts.forEach(chart => Plotly.relayout(chart.place, layoutOf(chart))))
read()
Promise.all(charts.map(draw)).then(() => { charts.forEach(show); document.documentElement.dataset.drawn = charts.length })
