const all = (what, where = document) => [...where.querySelectorAll(what)]
const box = document.querySelector('[type=search]'), checks = all('[type=checkbox]'), cases = all('article')
const plain = text => text.normalize('NFC').toLowerCase().trim()
const texts = cases.map(one => plain(all('h2, p, li, header div b', one).map(part => part.textContent).join('\n')))
const tags = cases.map(one => JSON.parse(one.dataset.tags))
// The filter is in the address, so that a link or a reload keeps it: #q=refund&only=failed&tag=hours
let tag = ''
const show = () => {
  const word = plain(box.value), only = checks.filter(check => check.checked).map(check => '[data-is~=' + check.value + ']').join('')
  cases.forEach((one, n) => { one.hidden = !texts[n].includes(word) || !one.matches('article' + only) || !!tag && !tags[n].includes(tag) })
  const shown = cases.filter(one => !one.hidden).length
  document.querySelector('output').textContent = shown + ' of ' + cases.length + ' cases' + (tag && ', ' + tag)
  document.querySelector('.none').hidden = shown > 0
}
const read = () => {
  const asked = new URLSearchParams(location.hash.slice(1).replaceAll('+', '%2B')), only = (asked.get('only') || '').split(',')
  box.value = asked.get('q') || ''
  tag = asked.get('tag') || ''
  checks.forEach(check => { check.checked = only.includes(check.value) })
  show()
}
const changed = () => {
  const only = checks.filter(check => check.checked).map(check => check.value).join()
  const parts = [box.value && 'q=' + encodeURIComponent(box.value), only && 'only=' + only, tag && 'tag=' + encodeURIComponent(tag)].filter(Boolean)
  history.replaceState(null, '', location.href.split('#')[0] + (parts.length ? '#' + parts.join('&') : ''))
  show()
}
box.addEventListener('input', changed)
checks.forEach(check => check.addEventListener('change', changed))
all('[data-tag]').forEach(link => link.addEventListener('click', () => { tag = tag === link.dataset.tag ? '' : link.dataset.tag; changed() }))
addEventListener('hashchange', read)
addEventListener('keydown', event => { if (event.key === '/' && document.activeElement !== box) { event.preventDefault(); box.focus() } })
read()
