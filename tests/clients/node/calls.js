// Makes the calls that standard input asks for, a line of JSON each, with the official Node.js client; prints a line of JSON for each.

const { readFileSync } = require('node:fs');
const { createInterface } = require('node:readline');
const { Session } = require('@yandex-cloud/nodejs-sdk');
const { iamTokenService } = require('@yandex-cloud/nodejs-sdk/iam-v1');
const { backupService } = require('@yandex-cloud/nodejs-sdk/mdb-greenplum-v1');
const { connect, call, get, backups } = require('./backups');

const [address, caFile] = process.argv.slice(2);
const rootCerts = readFileSync(caFile);

async function answer(asked) {
  const service = connect(address, asked.token, rootCerts);
  switch (asked.call) {
    case 'get':
      return [await get(service, asked.backup_id)];
    case 'list': {
      const found = [];
      for await (const backup of backups(service, asked.folder_id, asked.page_size)) found.push(backup);
      return found;
    }
    case 'delete':
      return call(service.delete, backupService.DeleteBackupRequest.fromPartial({ backupId: asked.backup_id }));
    case 'create token': {
      const iam = new Session({ iamToken: asked.token, ssl: { rootCerts } }).client(iamTokenService.IamTokenServiceClient, address);
      return call(iam.create, iamTokenService.CreateIamTokenRequest.fromPartial({ yandexPassportOauthToken: 'x' }));
    }
    default:
      throw new Error(`unknown call: ${asked.call}`);
  }
}

function row(backup) {
  const [created, started] = [backup.createdAt, backup.startedAt].map((time) => time.getTime() * 1000);
  const later = [backup.type, backup.method, backup.journalSize];
  return [backup.id, backup.folderId, created, backup.sourceClusterId, started, backup.size, ...later];
}

async function main() {
  for await (const line of createInterface({ input: process.stdin })) {
    let told;
    try {
      told = { backups: (await answer(JSON.parse(line))).map(row) };
    } catch (error) {
      told = { code: error.code ?? null, message: error.details ?? error.message, request_id: error.trailers?.get('x-request-id') ?? '' };
    }
    process.stdout.write(`${JSON.stringify(told)}\n`);
  }
  process.exit();
}

main();
