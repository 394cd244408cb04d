const all = (what, where = document) => [...where.querySelectorAll(what)]
const box = document.querySelector('[type=search]'), checks = all('[type=checkbox]'), rows = all('article')
const plain = text => text.normalize('NFC').toLowerCase().trim()
const texts = rows.map(row => plain(all('h2, h3, li, p', row).map(part => part.textContent).join('\n')))
const show = () => {
  const word = plain(box.value), only = checks.filter(check => check.checked).map(check => '[data-is~=' + check.value + ']').join('')
  rows.forEach((row, n) => { row.hidden = !texts[n].includes(word) || !row.matches('article' + only) })
  const shown = rows.filter(row => !row.hidden).length
  document.querySelector('output').textContent = shown + ' of ' + rows.length + ' rows'
  document.querySelector('.none').hidden = shown > 0
}
// The filter is in the address, so that a link or a reload keeps it: #q=beer&only=problems,cut
const read = () => {
  const asked = new URLSearchParams(location.hash.slice(1).replaceAll('+', '%2B')), only = (asked.get('only') || '').split(',')
  box.value = asked.get('q') || ''
  checks.forEach(check => { check.checked = only.includes(check.value) })
  show()
}
const changed = () => {
  const only = checks.filter(check => check.checked).map(check => check.value).join()
  const parts = [box.value && 'q=' + encodeURIComponent(box.value), only && 'only=' + only].filter(Boolean)
  history.replaceState(null, '', location.href.split('#')[0] + (parts.length ? '#' + parts.join('&') : ''))
  show()
}
box.addEventListener('input', changed)
checks.forEach(check => check.addEventListener('change', changed))
addEventListener('hashchange', read)
addEventListener('keydown', event => { if (event.key === '/' && document.activeElement !== box) { event.preventDefault(); box.focus() } })
read()

// The token under the pointer or the finger, said at the foot of the window; its title, which serves where no script runs, would say it twice.
const tip = document.getElementById('tip')
const count = row => {
  let n = 0
  for (const token of all('p i', row)) {
    token.ids = token.title.split(' ')
    token.number = n + 1
    n += token.ids.length
    token.removeAttribute('title')
  }
  row.count = n
}
addEventListener('pointerover', event => {
  const token = event.target.closest('p i')
  tip.hidden = !token
  if (!token) return
  const row = token.closest('article')
  if (!row.count) count(row)
  const last = token.number + token.ids.length - 1
  tip.firstChild.textContent = JSON.stringify(token.textContent)
  tip.lastChild.textContent = [
    '', (token.ids.length > 1 ? 'ids ' : 'id ') + token.ids.join(' '),
    (last > token.number ? 'tokens ' + token.number + '–' + last : 'token ' + last) + ' of ' + row.count,
    token.closest('mark') ? 'trained' : 'context', token.matches('.s') && 'special',
  ].filter(part => part !== false).join(' · ')
})
