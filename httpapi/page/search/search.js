// Searches while someone types: fetches the page that the form would show, and replaces the
// results by its results. Without this script, the form does the same.
'use strict';
{
	const pause = 150; // ms without a key before a request
	const form = document.querySelector('form[role=search]');
	const text = form.elements.q;
	let shown = text.value.trim();
	let timer, request;

	async function search() {
		const wanted = text.value.trim();
		if (request) request.abort();
		if (wanted === shown) return;
		request = new AbortController();
		const url = new URL(form.action);
		if (wanted !== '') url.searchParams.set('q', wanted);
		try {
			const answer = await fetch(url, { headers: { Accept: 'text/html' }, signal: request.signal });
			const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
			if (answer.redirected) {
				location.assign(answer.url); // an exact hash or store path
				return;
			}
			for (const id of ['results', 'count']) {
				const part = page.getElementById(id);
				if (part === null) throw new Error(answer.status);
				// The status stays in place, so that screen readers announce its new text.
				document.getElementById(id).replaceChildren(...part.childNodes);
			}
			document.title = page.title;
			history.replaceState(null, '', url);
			shown = wanted;
		} catch (error) {
			if (error.name === 'AbortError') return;
			document.getElementById('count').textContent = 'The server does not answer. Press Enter to try again.';
			shown = undefined;
		}
	}

	text.addEventListener('input', () => {
		clearTimeout(timer);
		timer = setTimeout(search, pause);
	});
	form.addEventListener('submit', () => clearTimeout(timer));
}
