// Adds a button to each text that is there to be copied. Without this script, the texts can be
// selected.
'use strict';
{
	const shown = 2000; // ms

	async function copy(pre) {
		if (navigator.clipboard) return navigator.clipboard.writeText(pre.innerText.trimEnd());
		// Browsers have no clipboard for pages that came without TLS.
		getSelection().selectAllChildren(pre);
		if (!document.execCommand('copy')) throw new Error('refused');
	}

	for (const pre of document.querySelectorAll('main pre')) {
		const box = document.createElement('div');
		box.className = 'copied';
		pre.before(box);
		const button = document.createElement('button');
		button.type = 'button';
		button.className = 'copy';
		const said = document.createElement('span');
		said.setAttribute('role', 'status');
		said.textContent = 'Copy';
		const what = document.createElement('span');
		what.className = 'hidden';
		what.textContent = ` ${pre.getAttribute('aria-label') || 'this text'}`;
		button.append(said, what);
		box.append(pre, button);
		button.addEventListener('click', async () => {
			try {
				await copy(pre);
				said.textContent = 'Copied';
			} catch {
				getSelection().selectAllChildren(pre);
				said.textContent = 'Press Ctrl+C';
			}
			setTimeout(() => { said.textContent = 'Copy'; }, shown);
		});
	}
}
