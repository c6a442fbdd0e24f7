'use strict';
for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector('button').addEventListener('click', () => {
    const descending = head.getAttribute('aria-sort') !== 'descending';
    heads.forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', descending ? 'descending' : 'ascending');
    const key = row => {
      const cell = row.cells[column];
      return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
    };
    const missing = row => row.cells[column].textContent === '--';
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      if (missing(a) !== missing(b)) return missing(a) ? 1 : -1;
      const [x, y] = [key(a), key(b)];
      const order = typeof x === 'number' && typeof y === 'number' ? x - y : String(x).localeCompare(String(y));
      return descending ? -order : order;
    });
    table.tBodies[0].append(...rows);
  }));
}
// page.html#sort=3 opens the first table sorted by its third column
const wanted = /^#sort=(\d+)$/.exec(location.hash);
const first = document.querySelector('table.sortable');
if (wanted && first) first.tHead.rows[0].cells[wanted[1] - 1]?.querySelector('button').click();
