# SPDX-License-Identifier: Apache-2.0
"""A hub on this machine: the endpoints of the Hugging Face hub that fetching and pushing need; loaded by path."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


def git_name(data):
    return hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()


class Hub:
    """Repositories: name -> commit -> file -> bytes, with branches. ``tricks`` change the answers, and ``seen`` notes
    (method, path, authorization) of every request."""

    def __init__(self):
        self.repos, self.branches, self.stored, self.tricks, self.seen = {}, {}, {}, {}, []
        self.address = ''

    def commit(self, repo, files, branch='main'):
        commits, branches = self.repos.setdefault(repo, {}), self.branches.setdefault(repo, {})
        whole = {**commits.get(branches.get(branch, branches.get('main')), {}), **files}
        name = hashlib.sha1(f'{repo}{branch}{len(commits)}{sorted(whole)}'.encode()).hexdigest()
        commits[name] = whole
        branches[branch] = name
        return name

    def files(self, repo, branch='main'):
        return self.repos[repo][self.branches[repo][branch]]

    @contextmanager
    def serving(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def log_message(self, *_):
                pass

            def body(self):
                return self.rfile.read(int(self.headers.get('Content-Length') or 0))

            def answer(self, status, data=b'', **headers):
                self.send_response(status)
                for key, value in {'Content-Length': len(data), **headers}.items():
                    self.send_header(key.replace('_', '-'), str(value))
                self.end_headers()
                if self.command != 'HEAD':
                    self.wfile.write(data)

            def as_json(self, value, status=200):
                self.answer(status, json.dumps(value).encode(), Content_Type='application/json')

            def note(self):
                hub.seen.append((self.command, self.path, self.headers.get('Authorization')))
                return unquote(urlsplit(self.path).path).strip('/').split('/')

            def do_HEAD(self):
                self.resolve()

            def do_GET(self):
                self.resolve()

            def resolve(self):
                parts = self.note()
                if 'resolve' not in parts:
                    return self.answer(404)
                at = parts.index('resolve')
                repo = '/'.join(parts[:at])
                if repo not in hub.repos:
                    return self.answer(401 if repo.startswith('private') else 404, X_Error_Code='RepoNotFound')
                commit = parts[at + 1]
                commit = commit if commit in hub.repos[repo] else hub.branches[repo].get(commit)
                if commit is None:
                    return self.answer(404, X_Error_Code='RevisionNotFound')
                name = '/'.join(parts[at + 2:])
                if name not in hub.repos[repo][commit]:
                    return self.answer(404, X_Error_Code='EntryNotFound', X_Repo_Commit=commit)
                data = hub.repos[repo][commit][name]
                digest = hashlib.sha256(data).hexdigest() if name.endswith('.safetensors') else git_name(data)
                headers = {'X-Repo-Commit': commit, 'ETag': f'"{digest}"', 'Accept-Ranges': 'bytes'}
                trick = hub.tricks.get(self.command)
                if trick is None:
                    return self.answer(200, data, **headers)
                trick(self, data, headers)

            def do_POST(self):
                parts, data = self.note(), self.body()
                said = json.loads(data) if data.strip().startswith(b'{') and b'\n{' not in data.strip() else None
                if self.headers.get('Authorization') != 'Bearer hf_SECRETsecretSECRET':
                    return self.answer(401, b'{"error":"Invalid token hf_SECRETsecretSECRET?"}')
                if parts[:2] == ['api', 'validate-yaml']:
                    return self.as_json(dict(errors=[], warnings=[]))
                if parts == ['api', 'repos', 'create']:
                    repo = f'{said.get("organization", "user")}/{said["name"]}'
                    new = repo not in hub.repos
                    if new:
                        hub.commit(repo, {})
                        hub.tricks.setdefault('made', []).append((repo, 'private' in (said.get('visibility'), 'private' if said.get('private') else '')))
                    return self.as_json(dict(url=f'{hub.address}/{repo}'), 200 if new else 409)
                repo = '/'.join(parts[2:4])
                if parts[-3:-1] == ['info', 'lfs'] or parts[-1] == 'batch':
                    objects = [dict(oid=o['oid'], size=o['size'], actions=dict(
                        upload=dict(href=f'{hub.address}/put/{o["oid"]}', header={}))) for o in said['objects']]
                    return self.as_json(dict(transfer='basic', objects=objects))
                if 'branch' in parts:
                    hub.commit(repo, {}, '/'.join(parts[5:]))
                    return self.as_json({})
                if 'preupload' in parts:
                    return self.as_json(dict(files=[dict(
                        path=f['path'], shouldIgnore=False,
                        uploadMode='lfs' if f['path'].endswith('.safetensors') else 'regular') for f in said['files']]))
                if 'commit' in parts:
                    files = {}
                    for line in data.splitlines():
                        row = json.loads(line)
                        value = row['value']
                        if row['key'] == 'file':
                            files[value['path']] = base64.b64decode(value['content'])
                        elif row['key'] == 'lfsFile':
                            files[value['path']] = hub.stored[value['oid']]
                    name = hub.commit(repo, files, parts[5])
                    return self.as_json(dict(success=True, commitOid=name, commitUrl=f'{hub.address}/{repo}/commit/{name}'))
                self.answer(404)

            def do_PUT(self):
                parts = self.note()
                hub.stored[parts[-1]] = self.body()
                self.answer(200)

        server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.address = f'http://127.0.0.1:{server.server_address[1]}'
        threading.Thread(target=server.serve_forever, args=(0.01, ), daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


@contextmanager
def as_endpoint(hub, cache):
    """The hub that huggingface_hub speaks to in this process, with a cache of its own."""
    import pytest
    from huggingface_hub import constants
    with hub.serving(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, 'ENDPOINT', hub.address)
        patch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', hub.address + '/{repo_id}/resolve/{revision}/{filename}')
        patch.setattr(constants, 'HF_HUB_CACHE', str(cache))
        patch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
        patch.setenv('HF_TOKEN', 'hf_SECRETsecretSECRET')
        yield hub
