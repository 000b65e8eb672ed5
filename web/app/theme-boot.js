// Applies the chosen theme before the first paint, so that the page does not flash in the other
// one.
try {
  const theme = localStorage.getItem('chatmesh.theme');
  if (theme === 'dark' || theme === 'light') document.documentElement.dataset.theme = theme;
} catch {
  // Without storage the browser's own setting applies.
}
