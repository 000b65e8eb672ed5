// Before anything is drawn: the person's choice of dark or light.
try {
  const theme = localStorage.getItem('chatmesh.theme');
  if (theme === 'dark' || theme === 'light') document.documentElement.dataset.theme = theme;
} catch {
  // No storage in this browser: its own setting counts.
}
