const { Session } = require('@yandex-cloud/nodejs-sdk');
const { backupService, clusterService } = require('@yandex-cloud/nodejs-sdk/mdb-greenplum-v1');

function connect(address, token, rootCerts) {
  const session = new Session({ iamToken: token, ssl: { rootCerts } });
  return {
    backups: session.client(backupService.BackupServiceClient, address),
    clusters: session.client(clusterService.ClusterServiceClient, address),
  };
}

// Makes a call. An error has a `code`, the message as `details`, and here also the `trailers`, which contain `x-request-id`.
async function call(method, request) {
  let trailers;
  try {
    return await method(request, { onTrailer: (received) => { trailers = received; } });
  } catch (error) {
    error.trailers = trailers;
    throw error;
  }
}

function get(services, backupId) {
  return call(services.backups.get, backupService.GetBackupRequest.fromPartial({ backupId }));
}

function backups(services, folderId, pageSize = 0) {
  return pages(services.backups.list, (pageToken) => backupService.ListBackupsRequest.fromPartial({ folderId, pageSize, pageToken }));
}

function clusterBackups(services, clusterId, pageSize = 0) {
  return pages(services.clusters.listBackups, (pageToken) => clusterService.ListClusterBackupsRequest.fromPartial({ clusterId, pageSize, pageToken }));
}

async function* pages(method, request) {
  let pageToken = '';
  do {
    const page = await call(method, request(pageToken));
    yield* page.backups;
    pageToken = page.nextPageToken;
  } while (pageToken);
}

module.exports = { connect, call, get, backups, clusterBackups };
